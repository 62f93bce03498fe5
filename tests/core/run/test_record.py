"""run.json: what it says while a run is under way, and after it ended in whatever way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.distributed.processes import Processes
from lmflow.plugins import load_plugins
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.run.record import RunRecord, RunResult, now, peak_memory

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def make(small_recipe: Any, tmp_path: Path, events: Events) -> Callable[..., RunRecord]:
    def build(*, resumed: bool = False, processes: Processes | None = None, **options: Any) -> RunRecord:
        directory = RunDirectory(tmp_path / "run", resume=resumed)
        directory.close()
        log = RunLog(directory, lambda event, **values: events.append((event, values)), None, processes or Processes())
        return RunRecord(small_recipe(**options).recipe, load_plugins(), directory, log, resumed=resumed)

    return build


def written(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "run.json").read_text())
    return found


def test_a_run_that_began(make: Callable[..., RunRecord], tmp_path: Path):
    record = make(training__seed=11)
    record._log.metrics["parameters"] = 5
    record._log.note("two were cut")
    record.begin()
    found = written(tmp_path)
    assert (found["status"], found["error"], found["seed"], found["processes"]) == ("running", None, 11, 1)
    assert found["metrics"] == {"parameters": 5}
    assert found["notes"] == ["two were cut"]
    assert found["peak_memory_bytes"] > 10_000_000
    assert {"python", "torch"} <= found["versions"].keys()
    assert "lmflow-lora" in found["plugins"]
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert "finished" not in found


def test_a_run_that_ended_has_a_report_and_tells_plugins(
    make: Callable[..., RunRecord], tmp_path: Path, events: Events
):
    record = make()
    record.begin()
    record._log.metrics["steps"] = 3
    record.finish("failed", "ValueError: odd")
    found = written(tmp_path)
    assert (found["status"], found["error"]) == ("failed", "ValueError: odd")
    assert found["finished"] >= found["started"]
    assert "ValueError: odd" in (tmp_path / "run" / "report.html").read_text()
    expected = {"directory": tmp_path / "run", "status": "failed", "metrics": {"steps": 3}}
    assert events == [("lmflow_run_finished", expected)]


def test_a_resumed_run_goes_on_counting(make: Callable[..., RunRecord], tmp_path: Path):
    first = make()
    first.values["started"] = "2026-01-01T00:00:00+00:00"
    first._earlier_seconds = 100.0
    first.begin()
    again = make(resumed=True)
    again.begin()
    found = written(tmp_path)
    assert found["started"] == "2026-01-01T00:00:00+00:00"
    assert found["wall_seconds"] >= 100.0


@pytest.mark.parametrize("status", ["completed", "interrupted", "failed"])
def test_a_run_that_had_ended_keeps_its_record_until_work_begins(
    make: Callable[..., RunRecord], tmp_path: Path, events: Events, status: str
):
    first = make()
    first.begin()
    first.finish(status)
    before = (tmp_path / "run" / "run.json").read_bytes()
    events.clear()
    again = make(resumed=True)
    assert again.had_ended
    again.write()
    again.finish("failed", "ValueError: odd")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert events == []
    again.begin()
    assert written(tmp_path)["status"] == "running"


def test_a_run_that_was_killed_has_not_ended(make: Callable[..., RunRecord]):
    make().begin()
    assert not make(resumed=True).had_ended


def test_a_run_is_finished_where_its_result_is_there(make: Callable[..., RunRecord], tmp_path: Path):
    first = make()
    first.begin()
    first.values["result"] = "model"
    first.finish("completed")
    assert not make(resumed=True).is_finished
    (tmp_path / "run" / "model").mkdir()
    assert make(resumed=True).is_finished


@pytest.mark.parametrize("value", [None, "x", [], {}, float("nan"), True])
def test_damaged_values_of_a_record_are_not_gone_on_with(make: Callable[..., RunRecord], tmp_path: Path, value: Any):
    make().begin()
    damaged = dict.fromkeys(("wall_seconds", "started", "status", "result", "packing"), value)
    (tmp_path / "run" / "run.json").write_text(json.dumps(damaged))
    again = make(resumed=True)
    again.begin()
    assert written(tmp_path)["wall_seconds"] < 60
    assert isinstance(written(tmp_path)["started"], str)


def test_an_end_that_cannot_be_written_hides_no_error(
    make: Callable[..., RunRecord], monkeypatch: pytest.MonkeyPatch, events: Events
):
    record = make()
    record.begin()

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record._directory, "write_record", full)
    record.finish("failed", "ValueError: odd")
    assert [event for event, _ in events] == ["lmflow_run_finished"]
    with pytest.raises(OSError, match="No space left"):
        record.finish("completed")


def test_of_several_processes_rank_0_alone_writes_the_report(make: Callable[..., RunRecord], tmp_path: Path):
    record = make(processes=Processes(1, 2))
    record.begin()
    record.finish("completed")
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_memory_is_that_of_the_process_that_took_most(make: Callable[..., RunRecord], tmp_path: Path):
    class Two(Processes):
        def max(self, value: float) -> float:
            return 1e15

    record = make(processes=Two(0, 2))
    record.compare_memory()
    record.begin()
    assert written(tmp_path)["peak_memory_bytes"] == 10**15


def test_a_process_that_is_gone_is_not_waited_for(make: Callable[..., RunRecord]):
    class Gone(Processes):
        def barrier(self) -> None:
            raise RuntimeError("Connection closed by peer")

    record = make(processes=Gone(0, 2))
    record.wait_for_others()
    assert record.values["status"] == "running"


def test_memory_is_the_gpu_s_where_one_is_used(monkeypatch: pytest.MonkeyPatch):
    cuda = SimpleNamespace(is_available=lambda: True, max_memory_allocated=lambda: 4096)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert peak_memory() == 4096
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda: 0)
    assert peak_memory() > 10_000_000, "a GPU that nothing was put on says nothing of the run"


def test_memory_without_torch_is_the_process_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    before = peak_memory()
    assert before > 10_000_000
    assert peak_memory() >= before


def test_a_result_knows_how_it_ended(tmp_path: Path):
    assert RunResult(tmp_path, {"status": "interrupted"}).status == "interrupted"


def test_times_are_in_utc_to_the_second():
    found = datetime.fromisoformat(now())
    assert found.utcoffset() is not None
    assert found.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert found.microsecond == 0
