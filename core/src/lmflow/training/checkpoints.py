"""The checkpoints of one run: saved, restored, and the best of them chosen."""

from __future__ import annotations

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


class Checkpoints:
    """What a run keeps in its `checkpoints` directory; every process of the run calls the methods alike."""

    def __init__(self, directory: Path, options: TrainingOptions, processes: Processes, log: RunnerLog) -> None:
        self._directory = directory
        self._options = options
        self._processes = processes
        self._log = log

    def save(self, strategy: DDP, state: Mapping[str, Any]) -> None:
        """Save weights and optimizer state, and `state` (plain values), whose `step` names the checkpoint.

        Raises TrainingError for weights that are not finite, with which nothing can go on.
        """
        check_weights(strategy.trainable, state["step"], self._processes)
        saved = Checkpoint(strategy.weights(), strategy.optimizer_state(), state)
        keep, best = self._options.keep_checkpoints, self._options.result == "best"
        path = self._processes.on_rank0(
            lambda: save_checkpoint(self._directory, state["step"], saved, keep=keep, keep_best=best)
        )
        self._log.checkpoint_saved(path)

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
