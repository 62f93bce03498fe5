"""Bounds on what a chat template may take: it is a program of somebody else's, which may loop or write without end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lmflow.data.sample import Message
from lmflow.errors import DataError

SECONDS = 5.0
"""Of a processor, for one dialogue; templates take milliseconds."""
CHARACTERS, TIMES = 1_000_000, 20
"""A text may have so many, and so many times those of the dialogue, whose JSON may be escaped."""


class TemplateLimitError(DataError):
    """A template takes more than it may."""


@contextmanager
def limited_time() -> Iterator[None]:
    """Within the context this thread computes for SECONDS at most; then TemplateLimitError is raised.

    Where Python hears of no signals, in other threads than the main one and on Windows, nothing is bounded.
    """
    can_be_heard = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not can_be_heard or signal.getsignal(signal.SIGVTALRM) is not signal.SIG_DFL:
        yield
        return
    begun = time.thread_time()

    def end(_: int, __: FrameType | None) -> None:
        # The timer counts the other threads too, which tokenise meanwhile.
        if time.thread_time() - begun >= SECONDS:
            raise TemplateLimitError(f"it takes more than {SECONDS:.0f} seconds of a processor")
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)

    signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)


def check_length(text: str, turns: Iterable[Message], tools: Iterable[Any]) -> None:
    """Raise TemplateLimitError where a text is much longer than what is said in it."""
    given = sum(len(turn.content) + len(turn.thinking or "") + len(repr(turn.tool_calls)) for turn in turns)
    most = CHARACTERS + TIMES * (given + sum(len(repr(tool)) for tool in tools))
    if len(text) > most:
        raise TemplateLimitError(f"it writes {len(text):,} characters of {given:,} that are said")
