"""What run.json says of a run of several stages: what their own say, and how the whole ended."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lmflow.plugins import Plugins
from lmflow.plugins.installed import versions
from lmflow.recipe.stages import StagedRecipe
from lmflow.run.directory import FollowedDirectory, RunDirectory
from lmflow.run.record import now, number_in, text_in
from lmflow.run_files import STAGES, read_record

OF_LAST = ("device", "precision", "data", "seed")
"""What is said of the whole as of its last stage, since it is that one's result that is used."""


class PipelineRecord:
    """run.json of several stages; it is made anew from what their own files say whenever it is written."""

    def __init__(self, staged: StagedRecipe, plugins: Plugins, directory: RunDirectory, *, resumed: bool) -> None:
        previous = directory.read_record() if resumed else {}
        self._names = [stage.name for stage in staged.stages]
        self._directory = directory
        self.values: dict[str, Any] = {
            "status": "running",
            "started": text_in(previous, "started") or now(),
            "versions": versions(),
            "plugins": dict(plugins.versions()),
            "error": None,
        }

    def write(self, running: str | None = None) -> None:
        """run.json and the report as things stand; `running` is the stage that begins now."""
        from lmflow.report import write_report

        path = self._directory.path
        stages = {name: summary(path, name) for name in self._names}
        if running is not None:
            stages[running]["status"] = "running"
        last = read_record(place_of(path, self._names[-1]))
        self.values |= {
            "wall_seconds": round(sum(each["wall_seconds"] for each in stages.values()), 2),
            "peak_memory_bytes": max(each["peak_memory_bytes"] for each in stages.values()),
            "stages": stages,
            **{key: last[key] for key in OF_LAST if key in last},
            "metrics": last.get("metrics", {}),
        }
        if self.values["status"] == "completed":
            self.values["result"] = stages[self._names[-1]]["result"]
        self._directory.write_record(self.values)
        if not isinstance(self._directory, FollowedDirectory):
            write_report(path)

    def finish(self, status: str, error: str | None = None) -> None:
        """Write how all ended; a failure to do so never hides why."""
        self.values |= {"status": status, "error": error, "finished": now()}
        with suppress(*([] if status == "completed" else [OSError])):
            self.write()


def summary(whole: Path, name: str) -> dict[str, Any]:
    """What the record says of a stage: the gist of its own."""
    record, place = read_record(place_of(whole, name)), f"{STAGES}/{name}"
    return {
        "status": record.get("status", "pending"),
        "directory": place,
        "result": f"{place}/{record['result']}" if "result" in record else None,
        "wall_seconds": number_in(record, "wall_seconds"),
        "peak_memory_bytes": int(number_in(record, "peak_memory_bytes")),
        "error": record.get("error"),
        "metrics": record.get("metrics", {}),
    }


def place_of(whole: Path, name: str) -> Path:
    """The directory of a stage."""
    return whole / STAGES / name


def is_finished(place: Path) -> bool:
    """Whether the run of a stage is completed, and its result still there."""
    record = read_record(place)
    result = text_in(record, "result")
    return record.get("status") == "completed" and bool(result) and (place / result).exists()


def result_of(place: Path) -> Path:
    """Where the finished run of a stage left its result."""
    return place / str(read_record(place).get("result"))
