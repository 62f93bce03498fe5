"""The directory of one run: who may write to it, and what lies where."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lmflow.atomic import remove_remains, write_atomically
from lmflow.distributed.processes import Processes
from lmflow.errors import RunDirectoryError
from lmflow.run_files import (
    CHECKPOINTS,
    COMPARISON,
    DAMAGED,
    LOCK,
    METRICS,
    RECIPE,
    RECORD,
    REPORT,
    SAMPLES,
    STAGES,
    TRACKERS,
    holds_run,
    read_object,
    read_record,
    set_aside,
    to_json,
    write_lines,
)

CONTENTS = (
    RECIPE,
    RECORD,
    METRICS,
    COMPARISON,
    SAMPLES,
    CHECKPOINTS,
    REPORT,
    TRACKERS,
    STAGES,
    LOCK,
    "adapter",
    "model",
    f"{RECORD}{DAMAGED}",
    f"{METRICS}{DAMAGED}",
)


class RunDirectory:
    """An opened run directory, locked against other processes until closed; `folders` are made in it.

    A directory that holds anything but a run is never touched. Raises RunDirectoryError when it cannot be used
    as asked, saying which option would allow it.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        folders: Sequence[str] = (SAMPLES, CHECKPOINTS),
    ) -> None:
        self.path = path
        check_usable(path, resume=resume, overwrite=overwrite)
        existed = path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
        except OSError as error:
            raise RunDirectoryError(
                f"{path} cannot be written to: {error.strerror}. Choose another --output."
            ) from error
        self.notes: list[str] = []
        """What the user is to be told of it once there is a log."""
        if existed:
            for place in (path, *(path / folder for folder in folders)):
                remove_remains(place)
        if existed and overwrite:
            remove_run(path)
        for folder in folders:
            (path / folder).mkdir(exist_ok=True)
        if resume and (path / RECORD).exists() and read_object(path / RECORD) is None:
            self.notes.append(f"{set_aside(path / RECORD)}, and a new one is written")

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    @property
    def recipe(self) -> Path:
        """The fully resolved recipe."""
        return self.path / RECIPE

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints stand."""
        return self.path / CHECKPOINTS

    def write_recipe(self, text: str) -> None:
        """Replace the fully resolved recipe."""
        write_atomically(self.recipe, text)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_atomically(self.path / RECORD, to_json(record, indent=2) + "\n")

    def read_record(self) -> dict[str, Any]:
        """What run.json holds, empty if there is none."""
        return read_record(self.path)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; what is no finite number on that step is left out."""
        known = {name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)}
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(to_json(known) + "\n")

    def drop_metrics_after(self, step: int) -> str | None:
        """Remove the lines of steps that a resumed run will take again, and a line that a killed run left torn.

        A file with other lines that cannot be read is set aside, and what can be read of it kept: a sentence says so.
        """
        path = self.path / METRICS
        if not path.exists():
            return None
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b"", b""]
        lines.pop()  # empty, or torn
        steps = [_step_of(line) for line in lines]
        damaged = not path.is_file() or None in steps
        told = f"{set_aside(path)}, and what can be read of it is kept" if damaged else None
        kept = [line for line, taken in zip(lines, steps, strict=True) if taken is not None and taken <= step]
        write_atomically(path, "".join(line.decode("utf-8") + "\n" for line in kept))
        return told

    def write_samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write what an aligner generated in one iteration, with rewards and which were kept."""
        path = self.path / SAMPLES / f"iteration-{iteration:04d}.jsonl"
        write_lines(path, rows)
        return path

    def write_comparison(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write answers to the same held-out prompts before and after."""
        write_lines(self.path / COMPARISON, rows)


class FollowedDirectory(RunDirectory):
    """The directory of a run that rank 0 of several processes has opened and writes: here it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes = []

    def close(self) -> None:
        """Nothing is held."""

    def write_recipe(self, text: str) -> None:
        """Rank 0 does."""

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Rank 0 does."""

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Rank 0 does."""

    def drop_metrics_after(self, step: int) -> str | None:
        """Rank 0 does."""
        return None

    def write_samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Rank 0 does; where it does."""
        return self.path / SAMPLES / f"iteration-{iteration:04d}.jsonl"

    def write_comparison(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rank 0 does."""


def check_usable(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise RunDirectoryError unless a run may be started, resumed or overwritten at `path`."""
    if resume and overwrite:
        raise RunDirectoryError("--resume and --overwrite exclude each other.")
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file; --output takes a directory.")
    begun = holds_run(path)
    if resume and not begun:
        raise RunDirectoryError(f"{path} holds no run to resume.")
    strangers = [entry.name for entry in path.iterdir() if entry.name not in CONTENTS] if path.exists() else []
    if strangers and not begun:
        raise RunDirectoryError(
            f"{path} is not empty and holds no run ({', '.join(sorted(strangers)[:3])}); choose another --output."
        )
    if begun and not (resume or overwrite):
        status = read_record(path).get("status", "unfinished")
        raise RunDirectoryError(
            f"{path} already holds a run ({status}); continue it with --resume, or replace it with --overwrite."
        )


def lock(path: Path) -> IO[str]:
    """Take the directory's lock, or raise RunDirectoryError naming the process that has it."""
    file = (path / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunDirectoryError(f"{path} is in use by another run (process {holder}).") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def remove_run(path: Path) -> None:
    """Delete what runs write, and nothing else, from `path`."""
    for name in CONTENTS:
        entry = path / name
        if name == LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics; None where it is no line of metrics."""
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    step = found.get("step", 0) if isinstance(found, dict) else None
    return step if isinstance(step, int) else None


def opened_by_rank0(
    processes: Processes, begin: Callable[[], RunDirectory], check: Callable[[RunDirectory], None]
) -> RunDirectory:
    """A directory that rank 0 opens, locks and checks, and the others follow; what goes wrong is raised in all."""
    mine: list[RunDirectory] = []

    def open_and_check() -> Path:
        mine.append(begin())
        check(mine[0])
        return mine[0].path.absolute()

    try:
        path = processes.on_rank0(open_and_check)
    except BaseException:
        for directory in mine:
            directory.close()
        raise
    return mine[0] if mine else FollowedDirectory(path)
