"""A plugin's own faults: what a component raises where it should not, told with its name instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, TracebackType

from pydantic import BaseModel, ValidationError

from lmflow.errors import LmflowError, PluginError
from lmflow.plugins.stray_output import stdout_as_stderr


@contextmanager
def blaming(who: str, doing: str | Callable[[BaseException], str]) -> Iterator[None]:
    """Within the context an unexpected error is `who`'s fault, and what it prints goes to standard error.

    `doing` is what was asked of it, or makes that of the error.

    Raises PluginError for what is neither an LmflowError nor a ValidationError.
    """
    try:
        with stdout_as_stderr():
            yield
    except (LmflowError, ValidationError):
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        asked = doing if isinstance(doing, str) else doing(error)
        raise PluginError(
            f"{who}: {asked} raised {said}. This is a fault of the plugin; --debug shows where."
        ) from error


def failing_options(owner: type[BaseModel], error: BaseException) -> list[str]:
    """The options whose validators an error came from, as far as the traceback tells."""
    running = set(_codes(error.__traceback__))
    found = []
    for decorator in owner.__pydantic_decorators__.field_validators.values():
        if _code_of(decorator.func) in running:
            found += [key for key in decorator.info.fields if key in owner.model_fields]
    for key, field in owner.model_fields.items():
        if any(_code_of(getattr(each, "func", None)) in running for each in field.metadata):
            found.append(key)
    return found


def _codes(traceback: TracebackType | None) -> Iterator[CodeType]:
    while traceback is not None:
        yield traceback.tb_frame.f_code
        traceback = traceback.tb_next


def _code_of(function: object) -> CodeType | None:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code if isinstance(code, CodeType) else None
