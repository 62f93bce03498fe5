"""Whole runs with both trackers, read back with TensorBoard's reader and MLflow's client."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.errors import LmflowError
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run import before_after
from lmflow.run.run import run
from lmflow.testing.runs import RECORDS, SETTINGS, SMALL, TIME, interrupt, stored_recipe, write_records

Points = dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where MLflow's local store goes; the variables the tracker sets are taken back."""
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "false")  # so that teardown restores what was there
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mlruns"


def recipe(plugins: Plugins, model: Path, tmp_path: Path, **more: Any) -> Any:
    settings = {
        **SETTINGS,
        **SMALL,
        "model": str(model),
        "data.path": str(write_records(tmp_path / "records.jsonl", RECORDS)),
        "data.validation": 0.25,
        "training.checkpoint_every": 2,
        "training.evaluate_every": 2,
        "trackers": "tensorboard,mlflow",
        **more,
    }
    return resolve(plugins, None, [Setting(path, value, Origin("option", path)) for path, value in settings.items()])


def on_board(place: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(place), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = [
        (tag, event.step, event.value) for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)
    ]
    return once(found)


def once(found: list[tuple[str, int, float]]) -> Points:
    """The points by place; fails where one was written twice."""
    by_place = {(tag, step): value for tag, step, value in found}
    assert len(by_place) == len(found)
    return by_place


def mlflow_runs(store: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(store.as_uri())
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client, client.search_runs(experiments)


def in_mlflow(store: Path) -> Points:
    client, [found] = mlflow_runs(store)
    keys = found.data.metrics
    return once([(key, p.step, p.value) for key in keys for p in client.get_metric_history(found.info.run_id, key)])


def repeatable(points: Points) -> Points:
    """Without the times, which differ between two runs of one recipe; as float32, which TensorBoard keeps."""
    return {
        place: struct.unpack("f", struct.pack("f", value))[0] for place, value in points.items() if TIME not in place[0]
    }


def test_both_hold_what_metrics_holds(plugins, store, model_directory, tmp_path):
    result = run(recipe(plugins, model_directory, tmp_path), plugins, output=tmp_path / "out")
    assert not any("tracker" in note for note in result.record["notes"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    board, kept = on_board(tmp_path / "out" / "trackers" / "tensorboard"), in_mlflow(store)
    steps = [line for line in lines if "loss" in line]
    assert [board[("train/loss", line["step"])] for line in steps] == pytest.approx([line["loss"] for line in steps])
    assert [kept[("train/loss", line["step"])] for line in steps] == [line["loss"] for line in steps]
    held_out = {("heldout/loss", line["step"]): line["eval_loss"] for line in lines if "eval_loss" in line}
    assert held_out
    assert {place: value for place, value in kept.items() if place[0] == "heldout/loss"} == held_out
    assert kept[("summary/eval_loss_after", 0)] == result.record["metrics"]["eval_loss_after"]
    assert {tag for tag, _ in board} == {tag for tag, _ in kept}


def test_mlflow_knows_recipe_versions_status_and_report(plugins, store, model_directory, tmp_path):
    wanted = {"trackers.mlflow.experiment": "sums", "trackers.mlflow.run_name": "first"}
    run(recipe(plugins, model_directory, tmp_path, **wanted), plugins, output=tmp_path / "out")
    client, [found] = mlflow_runs(store)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
    assert client.get_experiment(found.info.experiment_id).name == "sums"
    assert found.data.params["tuner.name"] == "full"
    assert found.data.params["training.batch_size"] == "3"
    assert not any("mlflow" in name for name in found.data.params)
    assert found.data.tags["lmflow.version.torch"]
    assert Path(found.data.tags["lmflow.checkpoint"]).is_dir()
    kept = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert kept == {"recipe.yaml", "run.json", "report.html"}


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_run_continues_its_curves(after, plugins, store, model_directory, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    apart = recipe(plugins, model_directory, tmp_path, **{"trackers.mlflow.uri": str(elsewhere)})
    run(apart, plugins, output=tmp_path / "whole")
    uninterrupted = on_board(tmp_path / "whole" / "trackers" / "tensorboard")
    whole = recipe(plugins, model_directory, tmp_path)
    interrupt(whole, plugins, tmp_path / "out", after=after)
    assert mlflow_runs(store)[1][0].info.status == "KILLED"
    run(stored_recipe(plugins, tmp_path / "out"), plugins, output=tmp_path / "out", resume=True)
    assert mlflow_runs(store)[1][0].info.status == "FINISHED"
    resumed = on_board(tmp_path / "out" / "trackers" / "tensorboard")
    assert repeatable(uninterrupted) == repeatable(resumed)
    assert repeatable(in_mlflow(elsewhere)) == repeatable(in_mlflow(store))
    assert resumed.keys() == uninterrupted.keys()


def test_points_a_killed_run_lost_come_from_its_metrics(plugins, store, model_directory, tmp_path):
    whole = recipe(plugins, model_directory, tmp_path)
    interrupt(whole, plugins, tmp_path / "out", after=4)
    board = tmp_path / "out" / "trackers" / "tensorboard"
    [events] = board.iterdir()
    events.write_bytes(events.read_bytes()[: events.stat().st_size // 2])  # torn, as SIGKILL leaves a file
    before = len(on_board(board))
    run(stored_recipe(plugins, tmp_path / "out"), plugins, output=tmp_path / "out", resume=True)
    assert before < len(on_board(board))
    assert repeatable(on_board(board)) == repeatable(in_mlflow(store))


def test_overwriting_begins_anew(plugins, store, model_directory, tmp_path):
    resolved = recipe(plugins, model_directory, tmp_path, **{"trackers.tensorboard.directory": "curves"})
    interrupt(resolved, plugins, tmp_path / "out", after=3)
    run(resolved, plugins, output=tmp_path / "out", overwrite=True)
    assert sorted(each.info.status for each in mlflow_runs(store)[1]) == ["FINISHED", "KILLED"]
    first, second = on_board(tmp_path / "curves" / "out"), on_board(tmp_path / "curves" / "out-2")
    assert len(first) < len(second)
    assert ("train/loss", 1) in second


def test_a_failed_run_is_marked_so(plugins, store, model_directory, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise LmflowError("no more")

    monkeypatch.setattr(before_after, "compare", fail)
    with pytest.raises(LmflowError, match="no more"):
        run(recipe(plugins, model_directory, tmp_path), plugins, output=tmp_path / "out")
    assert mlflow_runs(store)[1][0].info.status == "FAILED"
    assert not any(tag.startswith("summary/") for tag, _ in in_mlflow(store))


def test_a_store_that_cannot_be_written_stops_nothing(plugins, store, model_directory, tmp_path):
    store.write_text("a file where the folder should be")
    result = run(recipe(plugins, model_directory, tmp_path), plugins, output=tmp_path / "out")
    [note] = [note for note in result.record["notes"] if "tracker" in note]
    assert result.status == "completed"
    assert note.startswith("tracker mlflow: lmflow_run_started raised")
    assert ("train/loss", 1) in on_board(tmp_path / "out" / "trackers" / "tensorboard")


def test_telemetry_is_off(plugins, store, model_directory, tmp_path):
    run(recipe(plugins, model_directory, tmp_path, trackers="mlflow"), plugins, output=tmp_path / "out")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    telemetry = pytest.importorskip("mlflow.telemetry.utils", reason="this MLflow has no telemetry to switch off")
    assert telemetry.is_telemetry_disabled()
