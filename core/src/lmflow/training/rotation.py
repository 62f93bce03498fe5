"""Parameters that train at some steps only, as the tuner says (`Tuner.active`): LISA's layers, for one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from lmflow.components import Tuner
from lmflow.errors import TrainingError
from lmflow.models.heads import is_head

if TYPE_CHECKING:
    from lmflow.distributed.strategies.ddp import DDP


def rotates(tuner: Tuner | None) -> bool:
    """Whether the tuner names other parameters at other steps."""
    return tuner is not None and type(tuner).active is not Tuner.active


def split_heads(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Parameters of heads, which train at every step, and the others, which the tuner knows."""
    heads = [name for name in names if is_head(name)]
    return heads, [name for name in names if not is_head(name)]


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
        heads, known = split_heads(self._trainable)
        named = self._tuner.active(step, known, self._seed)
        active = frozenset(known if named is None else named)
        if unknown := active - set(known):
            raise TrainingError(
                f"tuner {self._tuner.name}: active() names {sorted(unknown)[0]}, which prepare() left frozen; "
                "parameters that train at some steps need requires_grad from the start."
            )
        if not active:
            raise TrainingError(f"tuner {self._tuner.name}: active() names no parameter at step {step + 1}.")
        active |= set(heads)
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
