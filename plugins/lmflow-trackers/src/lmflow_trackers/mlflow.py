"""Tracker `mlflow`: a run of lmflow as a run of MLflow, with its recipe, curves, result and report."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from lmflow.components import Requirement, Tracker
from lmflow.hookspecs import hookimpl
from lmflow.recipe.recipe import Recipe
from lmflow.run_files import RECIPE, RECORD, REPORT
from lmflow_trackers.curves import Curves, numeric, points, recall, remember, settings, versions, written_lines

STATUSES = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST_KEY = 250
LONGEST_VALUE = 500  # what servers before MLflow 2.8 allow; later ones allow 6,000
AT_ONCE = 100
"""Parameters that MLflow takes in one request."""


class MLflow(Tracker):
    """Record the run in MLflow: recipe, curves, result and report."""

    name = "mlflow"
    requires = (Requirement("mlflow", "'lmflow-trackers[mlflow]'"),)

    uri: str = Field("mlruns", description="Folder of a local store, or the address of a tracking server.")
    experiment: str = Field("lmflow", description="Experiment the run belongs to; made if there is none.")
    run_name: str | None = Field(None, description="Name of the run; if unset, that of the run's directory.")
    artifacts: bool = Field(True, description=f"Copy {RECIPE}, {RECORD} and {REPORT} to the store when the run ends.")

    _client: Any = PrivateAttr(None)
    _run_id: str = PrivateAttr("")
    _curves: Curves = PrivateAttr(default_factory=Curves)

    @hookimpl
    def lmflow_run_started(self, recipe: Recipe, directory: Path) -> None:
        """Begin a run, or continue the one that this directory began."""
        self._client = _connect(self.uri)
        known = recall(directory, self.name)
        if known:
            self._run_id = known["run_id"]
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._begin(recipe, directory)
            remember(directory, self.name, {"run_id": self._run_id, "experiment": self.experiment})
        self._curves = Curves(_reached(self._client, self._run_id))
        for line in written_lines(directory):
            self._write(line["step"], points(line))

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the points of a line of metrics."""
        self._write(step, points(metrics))

    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        """Say where the newest checkpoint is."""
        self._client.set_tag(self._run_id, "lmflow.checkpoint", str(path))

    @hookimpl
    def lmflow_run_finished(self, directory: Path, status: str, metrics: Mapping[str, Any]) -> None:
        """Record how the run ended, and of a completed one what was measured before and after."""
        if status == "completed":
            self._write(0, {f"summary/{name}": value for name, value in numeric(metrics).items()})
        for name in (RECIPE, RECORD, REPORT) if self.artifacts else ():
            if (directory / name).exists():
                self._client.log_artifact(self._run_id, str(directory / name))
        self._client.set_terminated(self._run_id, STATUSES[status])

    def _begin(self, recipe: Recipe, directory: Path) -> str:
        """A new run with the recipe and the versions; returns its id."""
        from mlflow.entities import Param

        tags = {f"lmflow.version.{name}": text for name, text in versions(directory).items()}
        tags |= {"lmflow.directory": str(directory.resolve()), "mlflow.source.name": "lmflow run"}
        name = self.run_name or directory.resolve().name
        experiment = _experiment(self._client, self.experiment)
        run_id: str = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        parameters = [Param(_key(path), value[:LONGEST_VALUE]) for path, value in settings(recipe).items()]
        for some in _batches(parameters):
            self._client.log_batch(run_id, params=some)
        return run_id

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        safe = {_key(tag): value for tag, value in values.items()}
        new = [Metric(tag, value, now, step) for tag, value in self._curves.advance(step, safe).items()]
        if new:
            self._client.log_batch(self._run_id, metrics=new)


def _connect(uri: str) -> Any:
    """A client of the store, which sends nothing to MLflow's makers.

    The variables hold for this process and those it starts. MLflow refuses its own file store, which needs nothing but
    a folder, unless it is told that it is wanted.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    local = "://" not in uri
    if local:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(Path(uri).resolve().as_uri() if local else uri)


def _experiment(client: Any, name: str) -> str:
    """The id of the experiment, made if there is none."""
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _reached(client: Any, run_id: str) -> dict[str, int]:
    """The last step of each curve the store has of the run."""
    tags = client.get_run(run_id).data.metrics
    return {tag: max(point.step for point in client.get_metric_history(run_id, tag)) for tag in tags}


def _key(name: str) -> str:
    """`name` in the letters and the length that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:LONGEST_KEY]


def _batches(parameters: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (parameters[start : start + AT_ONCE] for start in range(0, len(parameters), AT_ONCE))
