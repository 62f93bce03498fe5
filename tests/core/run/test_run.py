"""The life of a run: what it leaves when it completes, and what it leaves when it does not."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lmflow.errors import Interrupted, LmflowError, LostContact, RunDirectoryError, TrainingError
from lmflow.plugins import load_plugins
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import resolve
from lmflow.run import run as life
from lmflow.run import stages
from lmflow.run.display import Silent
from lmflow.run.record import RunResult
from lmflow.run.run import default_output, explained, open_directory, run, silent
from lmflow.training.trainer import Trainer

Make = Callable[..., Any]


def record_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "run.json").read_text())
    return found


class Told(Silent):
    """A display that remembers the phases and notes it was told of."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []

    def phase(self, name: str, total: int | None) -> None:
        """A phase."""
        self.phases.append(name)

    def note(self, text: str) -> None:
        """A note."""
        self.notes.append(text)


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def finished(small_recipe: Make, tmp_path_factory: pytest.TempPathFactory, told: Told) -> RunResult:
    place = tmp_path_factory.mktemp("finished") / "run"
    return run(small_recipe(), load_plugins(), output=place, display=told, estimate=False)


def test_a_completed_run_says_so_and_has_its_files(finished: RunResult):
    assert finished.status == finished.record["status"] == "completed"
    for name in ("recipe.yaml", "run.json", "metrics.jsonl", "comparison.jsonl", "report.html", "model"):
        assert (finished.directory / name).exists(), name
    record = record_of(finished.directory)
    assert record["result"] == "model"
    assert record["error"] is None
    assert record["data"]["train"] == 9
    metrics = record["metrics"]
    assert (metrics["steps"], metrics["parameters"]) == (3, metrics["trainable_parameters"])
    assert metrics["tokens"] > 0
    for name in ("eval_loss", "generic_loss"):
        assert metrics[f"{name}_before"] != metrics[f"{name}_after"]
    assert len((finished.directory / "comparison.jsonl").read_text().splitlines()) == 2


def test_its_phases_come_in_the_order_of_its_life(finished: RunResult, told: Told):
    phases = [name for i, name in enumerate(told.phases) if name not in told.phases[:i]]
    before = ["reading data", "checking the samples", "loading model pretrained"]
    assert phases == [*before, "self-test", "evaluating", "answering held-out prompts", "training"]
    assert told.phases[-1] == "answering held-out prompts"
    assert finished.record["seconds"].keys() == set(phases)


def test_its_recipe_repeats_it(finished: RunResult, tmp_path: Path):
    text = (finished.directory / "recipe.yaml").read_text()
    again = resolve(load_plugins(), finished.directory / "recipe.yaml")
    assert dump(again.recipe) == text
    repeated = run(again, load_plugins(), output=tmp_path / "again", estimate=False)
    for name in ("eval_loss_after", "generic_loss_after", "tokens"):
        assert repeated.record["metrics"][name] == finished.record["metrics"][name]


def test_a_finished_run_that_is_resumed_takes_no_step_more(finished: RunResult, tmp_path: Path):
    place = Path(shutil.copytree(finished.directory, tmp_path / "copy"))
    before = (place / "metrics.jsonl").read_text()
    again = run(
        resolve(load_plugins(), place / "recipe.yaml"), load_plugins(), output=place, resume=True, estimate=False
    )
    assert again.status == "completed"
    assert (place / "metrics.jsonl").read_text() == before
    assert again.record["started"] == finished.record["started"]
    assert again.record["metrics"]["eval_loss_after"] == finished.record["metrics"]["eval_loss_after"]


@pytest.fixture
def again(finished: RunResult, tmp_path: Path) -> Callable[..., RunResult]:
    """Resumes a copy of the finished run, in `tmp_path / "copy"`."""
    place = Path(shutil.copytree(finished.directory, tmp_path / "copy"))
    return lambda **options: run(
        resolve(load_plugins(), place / "recipe.yaml"),
        load_plugins(),
        output=place,
        resume=True,
        estimate=False,
        **options,
    )


@pytest.mark.parametrize("error", [LmflowError("gone"), KeyboardInterrupt(), OSError("odd")])
@pytest.mark.parametrize("where", ["read_data", "load_model", "self_test", "check_reward"])
def test_what_goes_wrong_before_a_finished_run_goes_on_harms_nothing(
    again: Callable[..., RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
):
    shutil.rmtree(tmp_path / "copy" / "model")  # it has something to do again
    before = {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir() if file.suffix}
    monkeypatch.setattr(stages, where, failing(error))
    with pytest.raises((type(error), Interrupted)):
        again()
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir() if file.suffix} == before


def test_a_finished_run_that_lost_its_result_writes_it_again(
    again: Callable[..., RunResult], finished: RunResult, tmp_path: Path
):
    shutil.rmtree(tmp_path / "copy" / "model")
    assert again().status == "completed"
    weights = "model/model.safetensors"
    assert (tmp_path / "copy" / weights).read_bytes() == (finished.directory / weights).read_bytes()


def test_nothing_is_read_to_find_out_that_a_run_is_finished(
    again: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stages, "read_data", failing(LmflowError("gone")))
    told = Told()
    assert again(display=told).status == "completed"
    assert told.notes == ["the run is completed already: there is nothing to resume"]


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff\x00", None])
def test_side_files_never_stop_a_resume(
    again: Callable[..., RunResult], finished: RunResult, tmp_path: Path, damage: bytes | None
):
    place = tmp_path / "copy"
    shutil.rmtree(place / "model")
    for file in (place / "run.json", place / "metrics.jsonl", *place.glob("checkpoints/*/manifest.json")):
        file.unlink()
        if damage is not None:
            file.write_bytes(damage)
    told = Told()
    result = again(display=told)
    assert result.status == "completed"
    for name in ("eval_loss_after", "steps", "tokens"):
        assert result.metrics[name] == finished.metrics[name]
    assert sum("damaged" in note for note in told.notes) >= (2 if damage is not None else 1)
    assert (place / "model/model.safetensors").read_bytes() == (
        finished.directory / "model/model.safetensors"
    ).read_bytes()


def test_what_is_done_without_the_memory_there_was_is_the_same(
    finished: RunResult, small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(self: Any, *arguments: Any) -> float:
        if self.step == 1:
            raise MemoryError
        return step(self, *arguments)

    step = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", full)
    where: dict[str, Any] = {"output": tmp_path / "run", "estimate": False}
    with pytest.raises(MemoryError):
        run(small_recipe(training__checkpoint_every=1), load_plugins(), **where)
    monkeypatch.setattr(Trainer, "_train_step", step)
    leaner = {"training__micro_batch_size": 1, "training__gradient_checkpointing": True}
    result = run(small_recipe(**leaner), load_plugins(), resume=True, **where)
    assert result.metrics["steps"] == finished.metrics["steps"]
    assert result.metrics["eval_loss_after"] == pytest.approx(finished.metrics["eval_loss_after"], abs=1e-5)
    assert resolve(load_plugins(), tmp_path / "run" / "recipe.yaml").recipe.training.micro_batch_size == 1


def test_what_a_component_says_to_python_ends_no_run_as_if_all_were_well(
    small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stages, "prepare", failing(SystemExit(0)))
    with pytest.raises(LmflowError, match=r"test_run.py:\d+ called sys.exit\(0\); raise an error instead"):
        run(small_recipe(), load_plugins(), output=tmp_path / "run", estimate=False)
    assert record_of(tmp_path / "run")["status"] == "failed"
    assert "called sys.exit(0)" in record_of(tmp_path / "run")["error"]


def test_another_run_s_directory_is_refused_and_left_alone(finished: RunResult, small_recipe: Make):
    before = (finished.directory / "run.json").read_bytes()
    with pytest.raises(RunDirectoryError, match=r"already holds a run \(completed\)"):
        run(small_recipe(), load_plugins(), output=finished.directory, estimate=False)
    with pytest.raises(RunDirectoryError, match="started with another recipe"):
        run(small_recipe(training__seed=5), load_plugins(), output=finished.directory, resume=True, estimate=False)
    assert (finished.directory / "run.json").read_bytes() == before


def events_of(plugins: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(plugins, "emit", lambda event, **values: found.append((event, values)))
    return found


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_a_failure_is_recorded_and_raised(small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugins = load_plugins()
    events = events_of(plugins, monkeypatch)
    monkeypatch.setattr(stages, "prepare", failing(TrainingError("no layer is called q")))
    with pytest.raises(TrainingError, match="no layer is called q"):
        run(small_recipe(), plugins, output=tmp_path / "run", estimate=False)
    record = record_of(tmp_path / "run")
    assert (record["status"], record["error"]) == ("failed", "TrainingError: no layer is called q")
    assert "result" not in record
    assert (tmp_path / "run" / "report.html").exists()
    assert [event for event, _ in events] == ["lmflow_run_started", "lmflow_run_finished"]
    assert events[-1][1]["status"] == "failed"


def test_an_interrupt_is_recorded_and_says_how_to_go_on(
    small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(work: Any, *_: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        work.log.check_stop()

    monkeypatch.setattr(stages, "prepare", interrupted)
    place = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        run(small_recipe(), load_plugins(), output=place, estimate=False)
    assert caught.value.signal_number == signal.SIGTERM
    assert str(caught.value).endswith(f"Continue with: lmflow run --resume --output {place}")
    assert record_of(place)["status"] == "interrupted"
    assert record_of(place)["error"] is None


def test_the_second_ctrl_c_counts_as_an_interrupt(small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "prepare", failing(KeyboardInterrupt()))
    with pytest.raises(Interrupted) as caught:
        run(small_recipe(), load_plugins(), output=tmp_path / "run", estimate=False)
    assert caught.value.signal_number == signal.SIGINT
    assert record_of(tmp_path / "run")["status"] == "interrupted"


def test_the_inferencer_is_closed_and_the_directory_free_however_a_run_ends(
    small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    closed: list[str] = []
    resolved = small_recipe()
    monkeypatch.setattr(type(resolved.recipe.inferencer), "close", lambda self: closed.append(self.name))
    monkeypatch.setattr(stages, "save", failing(LmflowError("nothing there")))
    with pytest.raises(LmflowError, match="nothing there"):
        run(resolved, load_plugins(), output=tmp_path / "run", estimate=False)
    assert closed == ["hf"]
    open_directory(resolved.recipe, life.Processes(), tmp_path / "run", False, True).close()


def test_a_directory_that_turns_out_wrong_is_not_left_locked(small_recipe: Make, tmp_path: Path):
    place = tmp_path / "run"
    recipe = small_recipe().recipe
    directory = open_directory(recipe, life.Processes(), place, False, False)
    directory.write_recipe(dump(small_recipe(training__seed=9).recipe))
    directory.close()
    with pytest.raises(RunDirectoryError, match="another recipe"):
        open_directory(recipe, life.Processes(), place, True, False)
    open_directory(recipe, life.Processes(), place, False, True).close()


def test_a_full_disk_is_said_with_what_to_do():
    error = OSError(errno.ENOSPC, "No space left on device", "/runs/a/checkpoints/x")
    told = explained(error, Path("/runs/a"))
    assert isinstance(told, LmflowError)
    assert str(told).startswith("The disk is full: /runs/a/checkpoints/x could not be written.")
    assert str(told).endswith("lmflow run --resume --output /runs/a")
    unnamed = explained(OSError(errno.ENOSPC, "No space left on device"), Path("/runs/a"))
    assert "The disk is full: /runs/a could" in str(unnamed)


def test_a_lost_process_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(life, "is_lost_contact", lambda error: "onnection closed" in str(error))
    error = RuntimeError("[..]: Connection closed by peer [127.0.0.1]:4000\nmore")
    told = explained(error, Path("/runs/a"))
    assert isinstance(told, LostContact)
    assert "Connection closed by peer" in str(told)
    assert "more" not in str(told)
    assert str(told).endswith("lmflow run --resume --output /runs/a")


@pytest.mark.parametrize("error", [ValueError("odd"), OSError(errno.EACCES, "denied"), RuntimeError("odd")])
def test_any_other_error_is_told_as_it_is(error: Exception):
    assert explained(error, Path("/runs/a")) is error


def test_runs_without_a_place_stand_below_runs_by_time_and_kind(
    small_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(2026, 3, 4, 5, 6, 7)

    monkeypatch.setattr(life, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe().recipe
    names = []
    for _ in range(3):
        place = default_output(recipe)
        place.mkdir(parents=True)
        names.append(str(place))
    assert names == [f"runs/20260304-050607-full-sft{end}" for end in ("", "-2", "-3")]


def test_processes_but_the_first_tell_nobody():
    assert silent("lmflow_step_finished", step=1) is None  # type: ignore[func-returns-value]
