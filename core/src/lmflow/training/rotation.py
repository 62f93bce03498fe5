"""Parameters that train at some steps only, as the tuner says (`Tuner.active`): LISA's layers, for one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from lmflow.components import Tuner
from lmflow.errors import TrainingError
from lmflow.models.heads import split_heads

if TYPE_CHECKING:
    from lmflow.distributed.strategies.ddp import DDP


def rotates(tuner: Tuner | None) -> bool:
    """Whether the tuner names other parameters at other steps."""
    return tuner is not None and type(tuner).active is not Tuner.active


def active_parameters(tuner: Tuner, names: Sequence[str], step: int, seed: int) -> frozenset[str]:
    """Those of the trainable parameters `names` that move at `step`: heads do, of the rest those that the tuner says.

    Raises TrainingError for what cannot be.
    """
    heads, known = split_heads(names)
    named: Collection[str] | None = tuner.active(step, known, seed)
    active = frozenset(known if named is None else named)
    if unknown := active - frozenset(known):
        raise TrainingError(
            f"tuner {tuner.name}: active() names {min(unknown)} at step {step + 1}, which is none of the names it was "
            "given; parameters that train at some steps need requires_grad from prepare() on, and keep their names."
        )
    if not active:
        raise TrainingError(f"tuner {tuner.name}: active() names no parameter at step {step + 1}.")
    return active | frozenset(heads)


class Rotation:
    """Which of the trainable parameters move now; the rest has no gradient and no optimizer state meanwhile."""

    def __init__(self, tuner: Tuner | None, trainable: Mapping[str, nn.Parameter], seed: int) -> None:
        self._tuner = tuner if rotates(tuner) else None
        self._trainable = dict(trainable)
        self._seed = seed
        self._active: frozenset[str] | None = None

    def switch(self, step: int, strategy: DDP) -> None:
        """Let the parameters of `step` have gradients, and drop the optimizer's state of the others."""
        if self._tuner is None:
            return
        active = active_parameters(self._tuner, list(self._trainable), step, self._seed)
        if active == self._active:
            return
        self._active = active
        for name, parameter in self._trainable.items():
            parameter.requires_grad_(name in active)
            if name not in active:
                parameter.grad = None
                strategy.optimizer.state.pop(parameter, None)
        strategy.rewrap()

    def end(self) -> None:
        """All of them have gradients again, as the tuner declared."""
        if self._active is not None:
            self._active = None
            for parameter in self._trainable.values():
                parameter.requires_grad_(True)
