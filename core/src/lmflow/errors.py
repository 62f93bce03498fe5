"""The errors a user can cause; the command line turns each into one message and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

DISK_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}
NO_MEMORY = {errno.ENOMEM: "Cannot allocate memory"}
MEMORY_WORDS = ("DefaultCPUAllocator", "can't start new thread")
"""What plain RuntimeErrors of too little main memory speak of: torch's, and Python's, which has no room for a stack."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a file could not be written for want of space; safetensors says it in words alone."""
    return _says(error, DISK_FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, that of the machine or of a GPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in MEMORY_WORDS) or _says(error, NO_MEMORY)


def _says(error: BaseException, reasons: Mapping[int, str]) -> bool:
    """Whether an error has one of these numbers, or the words for it."""
    if isinstance(error, OSError):
        return error.errno in reasons
    return any(words in str(error) for words in reasons.values())


class LmflowError(Exception):
    """What went wrong, where, and what to do next: shown without a traceback.

    `exit_code` is what the command returns: 2 for a mistake in what was asked, 1 for a failure while doing it.
    """

    exit_code = 1


class RecipeError(LmflowError):
    """Every mistake found in a recipe, its options and the components it names, one line each: `RecipeError([…])`."""

    exit_code = 2

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(LmflowError):
    """A record, file or data set that cannot be used; names the file, line and field."""

    exit_code = 2


class PluginError(LmflowError):
    """A plugin that was named cannot be used; names its distribution."""

    exit_code = 2


class RunDirectoryError(LmflowError):
    """The output directory cannot be used as asked."""

    exit_code = 2


class RewardError(LmflowError):
    """A reward raised, or returned something other than one finite number per completion."""


class TrainingError(LmflowError):
    """Training cannot go on: a non-finite loss, a failed self-test, no trained token."""


class EstimateError(LmflowError):
    """What a run will take cannot be said without carrying it out."""


class Interrupted(LmflowError):
    """The run was asked to stop by a signal and has stopped at a safe place."""

    def __init__(self, signal_number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class FailedElsewhere(LmflowError):
    """Another process of the run failed, which says why; this one ends with it."""


class LostContact(LmflowError):
    """Another process of the run has ended without a word, or does not answer."""
