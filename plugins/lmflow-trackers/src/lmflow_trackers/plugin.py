"""What this distribution adds: trackers `tensorboard` and `mlflow`."""

from __future__ import annotations

from lmflow.components import Tracker
from lmflow.hookspecs import hookimpl
from lmflow_trackers.mlflow import MLflow
from lmflow_trackers.tensorboard import TensorBoard

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_trackers() -> list[type[Tracker]]:
    """Trackers tensorboard and mlflow."""
    return [TensorBoard, MLflow]
