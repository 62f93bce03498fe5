"""Handlers of signals for a while: whoever calls lmflow from another thread than the main one keeps its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end."""
Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def handling(handler: Handler, *numbers: int) -> Iterator[None]:
    """Within the context `handler` is called for these signals, where this is the main thread; else nothing changes."""
    previous = {}
    try:
        try:
            for number in numbers:
                previous[number] = signal.signal(number, handler)
                _handled.append(number)
        except ValueError:  # not the main thread: signals are the caller's business
            pass
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
            with suppress(ValueError):  # a process forked within has forgotten it
                _handled.remove(number)


def stopping_signals() -> list[int]:
    """The signals to stop for: not the one of a terminal that closes, where that is ignored, as under nohup."""
    outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not outlives_terminal]


def default_handlers(*numbers: int) -> None:
    """Let signals do what they do in a program that has not asked for anything else."""
    for number in numbers:
        with suppress(ValueError):  # not the main thread
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


_handled: list[int] = []
"""The signals that are handled now."""


_masks: list[set[int]] = []
"""The signals that were held back before a fork; a process forks once at a time."""


def _hold_back() -> None:
    """Let none come between a fork and what `_forked` does."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _handled))


def _let_in() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _forked() -> None:
    """A process that code of others forks, as multiprocessing does, ends when it is told to: it is no run of ours."""
    default_handlers(*_handled)
    _handled.clear()
    _let_in()


os.register_at_fork(before=_hold_back, after_in_parent=_let_in, after_in_child=_forked)
