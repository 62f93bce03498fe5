"""Keeping libraries quiet while lmflow works: what they say means nothing to those who did not call them."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TypeVar

T = TypeVar("T")

ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""What libraries are told before they load: no chatter over the progress display, no telemetry, and no threads that
spin while they wait, which on a machine busy with something else made the demo take minutes instead of seconds."""


def set_environment() -> None:
    """Tell libraries that are yet to be loaded to be quiet; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    deepspeed = logging.getLogger("DeepSpeed")  # which sets its own level
    if errors_alone not in deepspeed.filters:
        deepspeed.addFilter(errors_alone)


def errors_alone(record: logging.LogRecord) -> bool:
    """Whether a message is an error or worse."""
    return record.levelno >= logging.ERROR


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Within the context what libraries print goes to standard error: standard output is for what was asked for."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context libraries warn of nothing, log errors alone, draw no bars, and print to standard error."""
    set_environment()
    with quiet_transformers(), warnings.catch_warnings(action="ignore"), stdout_for_results():
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the context a Transformers that was loaded before it could be told logs errors alone and draws no bars."""
    logs = sys.modules.get("transformers.utils.logging")
    if logs is None:
        yield
        return
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def quiet_steps(steps: Iterator[T]) -> Generator[T, None, None]:
    """The same items, each made while libraries are quiet; between them standard output is the caller's own."""
    end = object()
    try:
        while True:
            with quiet_libraries():
                item = next(steps, end)
            if item is end:
                return
            yield item  # type: ignore[misc]  # it is not the end
    finally:
        close = getattr(steps, "close", None)
        if close is not None:
            close()
