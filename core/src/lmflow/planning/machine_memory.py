"""How much main memory there is, and how much of it this process has: what Linux says, and its control groups."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import dataclass
from pathlib import Path

PROCESSES = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
M_MMAP_THRESHOLD = -3
"""The number of this option in glibc's malloc.h."""
LARGE = 2**20
"""Bytes from which on a block comes from the system by itself."""


@dataclass(frozen=True)
class MachineMemory:
    """Bytes of main memory."""

    total: int
    free: int
    """What new work can have without anything being moved to disk."""
    limit: int | None
    """What the container this runs in may have, where that is limited."""

    @property
    def available(self) -> int:
        """What this process may have, with what it has already."""
        most = self.free + resident_memory()
        return most if self.limit is None else min(most, self.limit)


def machine_memory(processes: Path = PROCESSES, groups: Path = GROUPS) -> MachineMemory | None:
    """The memory of this machine; None where Linux is not."""
    if not (processes / "meminfo").is_file():
        return None
    lines = (processes / "meminfo").read_text().splitlines()
    values = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.strip()}
    free = values.get("MemAvailable", values["MemFree"])
    return MachineMemory(values["MemTotal"], free, memory_limit(processes, groups))


def resident_memory() -> int:
    """Bytes of this process that lie in main memory; 0 where the system does not say."""
    status = PROCESSES / "self" / "statm"
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.is_file() else 0


def give_back_freed_memory() -> bool:
    """Have the C library return large blocks to the system when they are freed; whether it is one that can.

    glibc keeps blocks of up to 32 MB in a heap for the next of their size, which is fast, and splits them for smaller
    ones until the heap is twice what is in use.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False


def memory_limit(processes: Path, groups: Path) -> int | None:
    """Bytes that this process's control groups allow it, None if they set no limit.

    The second version of control groups has `memory.max` in one tree, the first `memory.limit_in_bytes` in one of its
    own. Within a container the paths are those of the host and may not exist; then its root is what counts.
    """
    membership = processes / "self" / "cgroup"
    if not membership.is_file():
        return None
    limits = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(root) and (folder / name).is_file():
                limits.append((folder / name).read_text().strip())
    return min((int(each) for each in limits if each.isdigit()), default=None)
