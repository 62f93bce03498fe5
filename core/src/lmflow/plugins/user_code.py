"""A fence around code of others, such as a reward function: what it may print, change and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from lmflow.errors import LmflowError
from lmflow.plugins.isolation import preserve_process_state
from lmflow.plugins.stray_output import stdout_as_stderr

P = ParamSpec("P")
T = TypeVar("T")


class ExitCalled(Exception):
    """Code of others asked Python to end the process, which it is not to."""


@contextmanager
def fenced() -> Iterator[None]:
    """Within the context code of others runs: it prints to standard error, and leaves the process as it found it.

    Random numbers, torch's modes and the working directory are afterwards as they were. Raises ExitCalled where it
    calls `sys.exit`, with which a run that failed would end as if all had gone well.
    """
    with stdout_as_stderr(), preserve_process_state():
        try:
            yield
        except SystemExit as stop:
            raise ExitCalled(f"it called {exit_call(stop)}") from stop


def exit_call(stop: SystemExit) -> str:
    """How somebody asked Python to end."""
    return f"sys.exit({stop.code!r})" if stop.code is not None else "sys.exit()"


def cannot_exit(command: Callable[P, T]) -> Callable[P, T]:
    """The function, in which `sys.exit` of whatever code it calls is an error."""

    @wraps(command)
    def called(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return command(*arguments, **options)
        except SystemExit as stop:
            raise exit_error(stop) from stop

    return called


def exit_error(stop: SystemExit) -> LmflowError:
    """What is said where something asked Python to end in the midst of a command."""
    frames, trace = [], stop.__traceback__
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return LmflowError(f"{frames[-1] if frames else 'some code'} called {exit_call(stop)}; raise an error instead")
