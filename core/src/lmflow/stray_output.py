"""Keeping what a plugin prints out of standard output, which belongs to the command's result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Within the context whatever is printed goes to standard error: by `print`, to file descriptor 1, and from C."""
    _flush()
    saved = _redirect_descriptor()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def _redirect_descriptor() -> int | None:
    """Point descriptor 1 where 2 points; returns a copy of what it was, None where one of them is closed."""
    try:
        saved = os.dup(1)
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(saved)
        return None
    return saved


def _flush() -> None:
    """Write out what Python and C hold back, while the descriptor still points where it was meant for."""
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(AttributeError, OSError, ValueError):  # there is none, its reader has gone, it is closed
            stream.flush()  # type: ignore[union-attr]
    with suppress(ImportError, OSError, AttributeError, TypeError):  # no C library to ask
        import ctypes

        ctypes.CDLL(None).fflush(None)
