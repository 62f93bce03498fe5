"""What run.json says of a run under way, and how it ended."""

from __future__ import annotations

import math
import platform
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmflow.plugins import Plugins
from lmflow.plugins.installed import versions
from lmflow.recipe.recipe import Recipe
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.run_files import REPORT

ENDED = ("completed", "interrupted", "failed")
"""What is said of a run that has ended by itself; one that was killed is still "running"."""


@dataclass(frozen=True)
class RunResult:
    """Where a run's directory is, and what its run.json holds."""

    directory: Path
    record: Mapping[str, Any] = field(repr=False)
    stop_signal: int | None = field(default=None, repr=False, compare=False)
    """A signal that asked the run to stop when all was done: what would come after it does not begin."""

    @property
    def status(self) -> str:
        """completed, interrupted or failed."""
        return str(self.record["status"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the run measured, by name: `eval_loss_before`, `eval_loss_after`, `tokens_per_second`, …"""
        metrics: Mapping[str, Any] = self.record["metrics"]
        return metrics

    @property
    def result(self) -> Path:
        """The adapter or model it ended with."""
        return self.directory / str(self.record["result"])

    @property
    def report(self) -> Path:
        """The page that shows it."""
        return self.directory / REPORT


class RunRecord:
    """run.json of one run: written when it begins, when it ends, and by nobody else meanwhile.

    A run that had ended and is resumed keeps what it says until `begin`: what goes wrong before harms no result.
    """

    def __init__(
        self, recipe: Recipe, plugins: Plugins, directory: RunDirectory, log: RunLog, *, resumed: bool
    ) -> None:
        earlier = directory.read_record() if resumed else {}
        self.earlier: Mapping[str, Any] = earlier
        self.begun = False
        self._directory = directory
        self._log = log
        self._earlier_seconds = number_in(earlier, "wall_seconds")
        self._started = time.monotonic()
        self._peak_memory = 0
        self.values: dict[str, Any] = {
            "status": "running",
            "started": text_in(earlier, "started") or now(),
            "seed": recipe.training.seed,
            "versions": versions(),
            "plugins": dict(plugins.versions()),
            "processes": log.processes.size,
            "packing": earlier.get("packing"),
            "data": earlier.get("data"),
            "weights": earlier.get("weights") or {},
            "error": None,
        }

    @property
    def had_ended(self) -> bool:
        """Whether it is the record of a run that is resumed, and had ended by itself."""
        return self.earlier.get("status") in ENDED

    @property
    def is_finished(self) -> bool:
        """Whether the run that is resumed has nothing left to do."""
        result = text_in(self.earlier, "result")
        return self.earlier.get("status") == "completed" and bool(result) and (self._directory.path / result).is_dir()

    def begin(self) -> None:
        """From here on run.json is that of the run under way."""
        self.begun = True
        self.write()

    def write(self) -> None:
        """run.json as things stand; as it was, where the run has not begun."""
        if not self.begun:
            return
        log = self._log
        self.values["wall_seconds"] = round(self._earlier_seconds + time.monotonic() - self._started, 2)
        self.values["peak_memory_bytes"] = max(self._peak_memory, peak_memory())  # of the process that took most
        self.values["seconds"] = {name: round(value, 3) for name, value in log.seconds.items()}
        self.values["metrics"] = dict(log.metrics)
        self.values["tables"] = dict(log.tables)
        self.values["notes"] = list(log.notes)
        self._directory.write_record(self.values)

    def compare_memory(self) -> None:
        """Let the record know of the process that took most memory; every process of the run calls it."""
        self._peak_memory = int(self._log.processes.max(peak_memory()))

    def finish(self, status: str, error: str | None = None) -> None:
        """Write run.json and the report, if the run had begun; a failure to do so never hides why the run ended."""
        if not self.begun:
            return
        from lmflow.report import write_report

        self.values |= {"status": status, "error": error, "finished": now()}
        try:
            self.write()
            if self._log.processes.is_rank0:
                write_report(self._directory.path)
        except OSError:
            if status == "completed":
                raise
        self._log.emit("lmflow_run_finished", directory=self._directory.path, status=status, metrics=self._log.metrics)

    def wait_for_others(self) -> None:
        """Leave together: no process ends while rank 0 writes, which a launcher might take for a fault."""
        with suppress(RuntimeError):  # another is gone already
            self._log.processes.barrier()


def number_in(record: Mapping[str, Any], name: str) -> float:
    """A number of a record that may be damaged; 0 where it holds none."""
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def text_in(record: Mapping[str, Any], name: str) -> str:
    """A text of a record that may be damaged; empty where it holds none."""
    value = record.get(name)
    return value if isinstance(value, str) else ""


def peak_memory() -> int:
    """Highest memory use of this process so far in bytes: the GPU's where one is used, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
