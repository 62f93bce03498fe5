"""Keeping what a plugin prints out of standard output, which belongs to the command's result."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.machinery import ExtensionFileLoader


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Within the context whatever is printed goes to standard error: by `print`, to file descriptor 1, and from C."""
    _flush()
    known = set(sys.modules)
    saved = _redirect_descriptor()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved is not None:
            _flush()
            _flush_c(sys.modules.keys() - known)
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
    """Write out what Python holds back, while the descriptor still points where it was meant for."""
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(AttributeError, OSError, ValueError):  # there is none, its reader has gone, it is closed
            stream.flush()  # type: ignore[union-attr]


def _flush_c(imported: Collection[str]) -> None:
    """The same for C, where it can have printed: an extension was imported just now, or ctypes is at hand."""
    foreign = [sys.modules.get(name) for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
    loaders = (getattr(getattr(module, "__spec__", None), "loader", None) for module in foreign)
    if "ctypes" not in sys.modules and not any(isinstance(each, ExtensionFileLoader) for each in loaders):
        return
    with suppress(ImportError, OSError, AttributeError, TypeError):  # no C library to ask
        import ctypes

        ctypes.CDLL(None).fflush(None)
