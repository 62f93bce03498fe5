"""Handlers of signals for a while: whoever calls lmflow from another thread than the main one keeps its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def handling(handler: Handler, *numbers: int) -> Iterator[None]:
    """Within the context `handler` is called for these signals, where this is the main thread; else nothing changes."""
    previous = {}
    try:
        try:
            for number in numbers:
                previous[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread: signals are the caller's business
            pass
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
