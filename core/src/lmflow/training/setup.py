"""How a trainer works, and what cannot work together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmflow.components import Optimizer, Schedule, Tuner
from lmflow.data.packing import MOST_PADDING
from lmflow.data.sample import Item
from lmflow.errors import RecipeError, TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.objective import NextToken, Objective
from lmflow.training.rotation import rotates


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a trainer works, beside the options of the recipe's `training` section."""

    optimizer: Optimizer
    schedule: Schedule
    tuner: Tuner | None = None
    """What says which parameters train at which step, and their groups; None where all do alike."""
    objective: Objective = field(default_factory=NextToken)
    """What is minimised, and how held-out items are judged."""
    precision: str = "fp32"
    packing: bool = False
    max_length: int | None = None
    padding: float = MOST_PADDING
    """Largest share of padding in a batch of packed rows, which are at most `max_length` long."""
    heldout: Sequence[Item] = ()
    keep_start_weights: bool = False
    strategy: str = "ddp"


def check_setup(options: TrainingOptions, setup: Setup, processes: int) -> None:
    """Raise RecipeError where the best step is wanted and nothing would find it, or the strategy cannot do its part."""
    if options.result == "best" and not (options.evaluate_every and setup.heldout):
        raise RecipeError(
            "training.result: best is chosen by the loss on held-out samples; set --training.evaluate_every, "
            "and --data.validation where nothing is held out"
        )
    if processes == 1 or setup.strategy == "ddp":
        return
    if rotates(setup.tuner):
        raise RecipeError(
            f"launch.strategy: the tuner trains other parameters at other steps, which {setup.strategy} cannot switch; "
            "use ddp"
        )
    if setup.keep_start_weights:
        raise RecipeError(
            f"launch.strategy: this aligner compares with the weights training started from, which {setup.strategy} "
            "splits over the processes; use ddp"
        )


def check_budget(items: int, steps: int, end: int, step: int, restored: int) -> None:
    """Raise TrainingError for a call of `fit` that takes no step, unless they were all taken before a resume."""
    if not items or steps < 1:
        raise TrainingError(f"trainer.fit was given {items} items and {steps} steps, so it takes none.")
    if end <= step and restored < end:
        raise TrainingError(
            f"trainer.fit was asked for the steps up to {end}, and the trainer is at step {step} already; "
            "leave `start` out for steps that follow those taken."
        )
