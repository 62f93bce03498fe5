"""Weights that an update has damaged are found before they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmflow.distributed.processes import Processes
from lmflow.errors import TrainingError


def check_weights(trained: Mapping[str, Tensor], step: int, processes: Processes) -> None:
    """Raise TrainingError, in every process, where an update made weights that are no finite numbers in one.

    The next loss would be the first to show it, and after the last update there is none.
    """
    damaged = next((name for name, each in trained.items() if not is_finite(each)), None)
    if not processes.max(int(damaged is not None)):
        return
    where = f" (in {damaged})" if damaged else ""
    raise TrainingError(
        f"The weights are not finite numbers after step {step}{where}: its update was too large. They are not saved; "
        "the last checkpoint is kept. Lower --training.learning_rate, or lengthen --schedule.warmup."
    )


def is_finite(weights: Tensor) -> bool:
    """Whether this process's part of weights holds finite numbers alone."""
    part: Any = weights.detach()
    return bool((part.to_local() if hasattr(part, "to_local") else part).isfinite().all())
