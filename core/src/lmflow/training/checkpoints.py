"""The checkpoints of one run: saved, restored, and the best of them chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lmflow.components.log import RunnerLog
from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.checkpoint import (
    SCORE,
    Checkpoint,
    best_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    step_of,
)
from lmflow.training.weights import check_weights

SHARE_SAVING = 9
"""Times as long as it takes to save a checkpoint that a run trains in between, where the clock says when."""


class Checkpoints:
    """What a run keeps in its `checkpoints` directory; every process of the run calls the methods alike."""

    def __init__(self, directory: Path, options: TrainingOptions, processes: Processes, log: RunnerLog) -> None:
        self._directory = directory
        self._options = options
        self._processes = processes
        self._log = log
        self._saved_at: float | None = None
        """When the last checkpoint was saved, or this was first asked for, in seconds of the monotonic clock."""
        self._seconds_saving = 0.0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after this step; by the clock, it is as soon as one process says so."""
        options = self._options
        if options.checkpoint_every is not None:
            return step % options.checkpoint_every == 0
        if options.checkpoint_minutes is None:
            return False
        now = time.monotonic()
        if self._saved_at is None:
            self._saved_at = now
        wait = max(60 * options.checkpoint_minutes, SHARE_SAVING * self._seconds_saving)
        return self._processes.any(now - self._saved_at >= wait)

    def save(self, strategy: DDP, state: Mapping[str, Any]) -> None:
        """Save weights and optimizer state, and `state` (plain values), whose `step` names the checkpoint.

        Raises TrainingError for weights that are not finite, with which nothing can go on.
        """
        check_weights(strategy.trainable, state["step"], self._processes)
        saved = Checkpoint(strategy.weights(), strategy.optimizer_state(), state)
        started = time.monotonic()
        keep, best = self._options.keep_checkpoints, self._options.result == "best"
        path = self._processes.on_rank0(
            lambda: save_checkpoint(self._directory, state["step"], saved, keep=keep, keep_best=best)
        )
        self._log.checkpoint_saved(path)
        self._saved_at = time.monotonic()
        self._seconds_saving = self._saved_at - started

    def restore(self, strategy: DDP) -> Mapping[str, Any] | None:
        """Set weights and optimizer state to those of the newest undamaged checkpoint; its state, None without one."""
        found = newest_checkpoint(self._directory, self._log.note)
        if found is None:
            return None
        path, saved = found
        set_weights(strategy, path, saved.weights)
        strategy.set_optimizer_state(saved.optimizer)
        return saved.state

    def is_best(self, eval_loss: float) -> bool:
        """Whether no checkpoint has a lower loss on the held-out samples."""

        def compare() -> bool:
            best = best_checkpoint(self._directory)
            return best is None or eval_loss < read_state(best)[SCORE]

        return self._processes.on_rank0(compare)

    def take_best(self, strategy: DDP) -> None:
        """Set the weights to those of the step with the lowest loss on held-out samples, and say which it is."""
        best = best_checkpoint(self._directory)
        if best is None:
            self._log.note("training.result: no checkpoint was evaluated, so the result is the last step")
            return
        score = read_state(best)[SCORE]
        self._log.note(f"the result is step {step_of(best):,}, whose held-out loss was lowest ({score:.4f})")
        self._log.metrics["result_step"] = step_of(best)
        set_weights(strategy, best, load_checkpoint(best).weights)


def set_weights(strategy: DDP, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Set the weights. Raises TrainingError where the checkpoint holds other parameters than those that train."""
    if weights.keys() != strategy.trainable.keys():
        raise TrainingError(f"{path} holds other parameters than this recipe trains; start a new run.")
    strategy.set_weights(weights)
