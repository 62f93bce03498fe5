"""Is there room? Free space where lmflow writes, and memory."""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmflow.doctor.finding import Finding, Status
from lmflow.formatting import size
from lmflow.planning.machine_memory import GROUPS, PROCESSES, machine_memory

NAME = "disk"
ROOMY = 5_000_000_000
"""Bytes below which a run of a middling model may fill the disk: weights, and the optimizer's state in checkpoints."""
MANY_FILES = 10_000
"""Files that may still be created below which a cache of models may fail."""
TRIED = 1_000_000
"""Bytes written to see whether writing works."""


@dataclass(frozen=True)
class Place:
    """A directory that lmflow or its libraries write to, and how bad it is if they cannot."""

    use: str
    path: Path
    mend: str
    """What to type, with another directory in it."""
    unwritable: Status = "warning"
    made: bool = True
    """Whether it is made where it does not exist."""

    @property
    def standing(self) -> Path:
        """What exists of its path already, as far as this user may look."""
        path = self.path.absolute()
        return next(each for each in (path, *path.parents) if os.path.exists(each))


def places(environment: Mapping[str, str], output: Path) -> list[Place]:
    """Where runs, downloads, caches and temporary files go."""
    cache = Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    hub = Path(environment.get("HF_HOME") or cache / "huggingface").expanduser()
    temporary = Path(environment.get("TMPDIR") or tempfile.gettempdir())
    return [
        Place("runs", output, "lmflow run --output DIRECTORY", "error"),
        Place("models and data from a hub", hub, "export HF_HOME=DIRECTORY"),
        Place("lmflow's cache", cache / "lmflow", "export XDG_CACHE_HOME=DIRECTORY"),
        Place("temporary files", temporary, "export TMPDIR=DIRECTORY", made=False),
    ]


def check_disk(places: Sequence[Place], measure: Callable[[Path], os.statvfs_result] = os.statvfs) -> Iterator[Finding]:
    """Whether each place can be written to, and has room; one finding for all that share a disk."""
    writable, faults = [], []
    for place in places:
        reason = why_unwritable(place)
        if reason:
            text = f"Nothing can be written to {place.path}, for {place.use}: {reason}."
            faults.append(Finding(NAME, place.unwritable, text, place.mend))
        else:
            writable.append(place)
    disks: dict[int, list[Place]] = {}
    for place in writable:
        disks.setdefault(place.standing.stat().st_dev, []).append(place)
    room = []
    for sharing in disks.values():
        free = measure(sharing[0].standing)
        fault = _check_space(sharing, free)
        faults += fault
        if not fault:
            room.append(f"{size(free.f_bavail * free.f_frsize)} for {_uses(sharing)}")
    yield from faults
    if room:
        yield Finding(NAME, "ok", f"Free: {'; '.join(room)}.")


def why_unwritable(place: Place) -> str:
    """Why no file of a megabyte can be written there, "" if one can; it has no name and leaves nothing."""
    if not place.made and not os.path.exists(place.path):
        return "it does not exist"
    try:
        with tempfile.TemporaryFile(dir=place.standing) as file:
            file.write(bytes(TRIED))
            file.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return "the disk is full" if full else f"{error.strerror or error}".lower()
    return ""


def _check_space(sharing: Sequence[Place], free: os.statvfs_result) -> list[Finding]:
    found, remedies = [], "\n".join(dict.fromkeys(place.mend for place in sharing))
    where = f"the disk of {shlex.quote(str(sharing[0].standing))}, for {_uses(sharing)}"
    space = free.f_bavail * free.f_frsize
    if space < ROOMY:
        text = f"Only {size(space)} are free on {where}: checkpoints and downloads may fill it."
        found.append(Finding(NAME, "warning", text, remedies))
    if free.f_files and free.f_favail < MANY_FILES:  # some file systems set no limit, and say 0
        text = f"Only {free.f_favail:,} more files can be created on {where}, however much space is left."
        found.append(Finding(NAME, "warning", text, remedies))
    return found


def _uses(sharing: Sequence[Place]) -> str:
    uses = [place.use for place in sharing]
    return " and ".join(filter(None, [", ".join(uses[:-1]), uses[-1]]))


def check_memory(processes: Path = PROCESSES, groups: Path = GROUPS) -> Iterator[Finding]:
    """Memory of the machine, and how much of it the container this runs in may have; nothing where Linux is not."""
    memory = machine_memory(processes, groups)
    if memory is None:
        return
    text = f"{size(memory.total)}, {size(memory.free)} of it available"
    if memory.limit is not None and memory.limit < memory.total:
        text += f"; this container may have {size(memory.limit)}"
    yield Finding("memory", "ok", f"{text}.")
