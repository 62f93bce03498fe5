"""The trackers of this distribution through the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import Tracker
from lmflow.testing import TrackerSuite
from lmflow_trackers.mlflow import MLflow
from lmflow_trackers.tensorboard import TensorBoard


class TestTensorBoard(TrackerSuite):
    loss_name = "train/loss"

    @pytest.fixture
    def tracker(self) -> Tracker:
        return TensorBoard()

    @pytest.fixture
    def read_back(self) -> Callable[[Path], Sequence[Any]]:
        def read(run: Path) -> Sequence[Any]:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            found = EventAccumulator(str(run / "trackers" / "tensorboard"), size_guidance={"scalars": 0})
            found.Reload()
            return [(tag, each.step, each.value) for tag in found.Tags()["scalars"] for each in found.Scalars(tag)]

        return read


class TestMLflow(TrackerSuite):
    loss_name = "train/loss"

    @pytest.fixture(scope="class")
    def store(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("mlflow")

    @pytest.fixture(autouse=True)
    def _variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
            monkeypatch.setenv(name, "false")  # so that teardown restores what was there

    @pytest.fixture
    def places(self, store: Path) -> Sequence[Path]:
        return [store]

    @pytest.fixture
    def tracker(self, store: Path) -> Tracker:
        return MLflow(uri=str(store / "runs"), artifacts=False)

    @pytest.fixture
    def read_back(self, store: Path) -> Callable[[Path], Sequence[Any]]:
        def read(run: Path) -> Sequence[Any]:
            from mlflow import MlflowClient

            client = MlflowClient((store / "runs").resolve().as_uri())
            [experiment] = [each for each in client.search_experiments() if each.name == "lmflow"]
            runs = client.search_runs([experiment.experiment_id])
            [found] = [each for each in runs if each.data.tags["lmflow.directory"] == str(run.resolve())]
            histories = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
            return [(key, point.step, point.value) for key, points in histories.items() for point in points]

        return read
