"""What launchers tell a process through its environment: that it is one of several, and which."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from lmflow.errors import RecipeError

REPORT = "LMFLOW_WORKER_REPORT"
"""File in which a process that `lmflow run` started says how it ended."""
LAUNCHER = "LMFLOW_LAUNCHER_PROCESS"
"""Number of the process that started it."""
UNKNOWN = "a launcher (RANK, WORLD_SIZE)"
LOOPBACK = "127.0.0.1"
PORTS = range(15_000, 25_000)
"""Where the processes of a SLURM job meet, by the job's number."""


@dataclass(frozen=True)
class Worker:
    """This process as one of several that a launcher has started."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    """How many of them this machine has, where the launcher says so."""
    launcher: str

    @property
    def is_rank0(self) -> bool:
        """Whether it is the one that writes and shows."""
        return self.rank == 0

    @property
    def is_known(self) -> bool:
        """Whether the launcher has said who it is; if not, its variables may have outlived it."""
        return self.launcher != UNKNOWN


def this_worker(environment: Mapping[str, str] = os.environ) -> Worker | None:
    """Which worker this process is; None where no launcher has started it. Raises RecipeError for half of an answer."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        size = _number(environment, "WORLD_SIZE")
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if size > 1 and missing:
            raise RecipeError(
                f"WORLD_SIZE={size}: set as in one of {size} processes, without {' and '.join(missing)}; "
                "unset RANK WORLD_SIZE, or start it with torchrun, which sets them all"
            )
        started_by = "lmflow" if REPORT in environment else "torchrun" if "TORCHELASTIC_RUN_ID" in environment else ""
        return Worker(
            _number(environment, "RANK"),
            size,
            _number(environment, "LOCAL_RANK", "0"),
            _number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else None,
            started_by or UNKNOWN,
        )
    # A batch script has SLURM_PROCID too; only what srun starts is a step, and has the number of its tasks.
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        size = _number(environment, "SLURM_STEP_NUM_TASKS")
        if size > 1:
            rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID", "0")
            return Worker(rank, size, local, _tasks_here(environment), "SLURM")
    return None


def take_part(worker: Worker, address: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torch and accelerate read, where the launcher speaks another language."""
    if worker.launcher != "SLURM":
        return
    host, _, port = (address or "").rpartition(":")
    job = _number(environment, "SLURM_JOB_ID", "0")
    environment["RANK"], environment["WORLD_SIZE"] = str(worker.rank), str(worker.size)
    environment["LOCAL_RANK"] = str(worker.local_rank)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or LOOPBACK
    environment.setdefault("MASTER_ADDR", host or first_node(nodes))
    environment.setdefault("MASTER_PORT", port or str(PORTS[job % len(PORTS)]))


def first_node(nodes: str) -> str:
    """The first machine of a list as SLURM writes it: `gpu[07-09,12],cpu3` begins with gpu07."""
    found = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else nodes


def usual_threads(processes: int) -> int:
    """How many threads each of several processes on this machine computes with."""
    return max(1, available_cores() // processes)


def available_cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where this process says how it ended, if `lmflow run` has started it."""
    name = environment.get(REPORT)
    return Path(name) if name else None


def _tasks_here(environment: Mapping[str, str]) -> int | None:
    """`2(x3),1` tasks per node: those of this one, where all have as many."""
    found = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return int(found[1]) if found else None


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default) or ""
    try:
        return int(text)
    except ValueError:
        raise RecipeError(f"{name}={text} is no number; unset it, or start the process with torchrun") from None
