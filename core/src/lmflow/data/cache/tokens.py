"""The cache of tokenised data: found again by everything that the tokens depend on."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lmflow.atomic import remove_remains
from lmflow.data.cache.token_store import INDEX, StoredSequences, write_store
from lmflow.data.sample import TokenSequence

VARIABLE = "LMFLOW_CACHE"
DAYS_KEPT = 30
"""Stores that no run has used for so long are deleted when another is written."""


class CacheError(Exception):
    """Tokens cannot be kept: the disk is full, or may not be written to."""


def cache_directory() -> Path:
    """Where stores are kept: `$LMFLOW_CACHE`, else `lmflow` in the user's folder for caches."""
    chosen = os.environ.get(VARIABLE)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(chosen) if chosen else Path(caches) / "lmflow").expanduser() / "tokens"


def cached(
    key: str, make: Callable[[], Iterable[TokenSequence]], about: Callable[[], Mapping[str, Any]]
) -> StoredSequences:
    """The store for `key`, written from what `make` gives and `about` says afterwards where there is none yet.

    Of several processes that need it, one writes it and the others wait. Raises CacheError where it cannot be written.
    """
    try:
        return _cached(key, make, about)
    except OSError as error:
        raise CacheError(f"{cache_directory()}: {error.strerror or error}") from error


def _cached(
    key: str, make: Callable[[], Iterable[TokenSequence]], about: Callable[[], Mapping[str, Any]]
) -> StoredSequences:
    directory = cache_directory() / key
    found = _open(directory)
    if found is None:
        with _alone_with(directory):
            found = _open(directory)
            if found is None:
                with _collecting_only_new_objects():
                    write_store(directory, make(), about)
                _forget_unused(directory)
                found = StoredSequences(directory)
    with suppress(OSError):  # a cache that others own can be read
        os.utime(directory / INDEX)
    return found


@contextmanager
def _alone_with(directory: Path) -> Iterator[None]:
    """Keep other processes from writing the same store; a file system that cannot does without."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = directory.with_name(f".{directory.name}.lock")
    with lock.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # who waits for it finds the store; who comes later finds it without a lock


@contextmanager
def _collecting_only_new_objects() -> Iterator[None]:
    """Spare the garbage collector what is there already: with torch loaded, it took a tenth of the time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _open(directory: Path) -> StoredSequences | None:
    """The store at `directory`; None where there is none, or a damaged one, which is then written anew."""
    try:
        return StoredSequences(directory)
    except (OSError, ValueError, KeyError):
        return None


def _forget_unused(but: Path) -> None:
    remove_remains(but.parent)
    oldest = time.time() - DAYS_KEPT * 86_400
    for directory in but.parent.iterdir():
        index = directory / INDEX
        with suppress(OSError):
            last_used = (index if index.exists() else directory).stat().st_mtime
            if directory != but and last_used < oldest:
                shutil.rmtree(directory, ignore_errors=True)
