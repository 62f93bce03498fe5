"""Slots `tuner`, `optimizer` and `schedule`: which parameters move, how they move, and how fast."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lmflow.components.base import Component

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lmflow.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters, by name, that share a learning rate and a weight decay; None leaves either to the run's options."""

    names: Collection[str]
    learning_rate: float | None = None
    """The highest rate of these parameters."""
    weight_decay: float | None = None


class Tuner(Component):
    """Slot `tuner`: which parameters move, now and at each step, and how they are stored."""

    trains_few: ClassVar[bool] = False
    """Whether it trains few parameters with its default options, so that `lmflow plan` proposes it where memory is
    short."""
    supports_quantization: ClassVar[bool] = False
    """Whether it leaves the weights of linear layers as they are, and so can train a model that has them quantised."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> nn.Module:
        """Make `model` trainable: exactly the parameters to be trained have `requires_grad` afterwards.

        Returns the model to train, which may wrap the one given. Parameters that train at some steps only (see
        `active`) have `requires_grad` too.
        """

    def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str] | None:
        """Names of the parameters that train at `step`, counted from 0; None for all that `prepare` made trainable.

        `names` are those. A function of its arguments alone, so that a resumed run does as the whole one. The trainer
        switches `requires_grad`, drops the optimizer's state of what rests, and keeps all of them in checkpoints.
        """
        return None

    def notes(self, model: nn.Module) -> Sequence[str]:
        """What the user is told, a sentence each, of the model that `prepare` returned; nothing by default."""
        return ()

    def parameter_groups(self, names: Sequence[str]) -> Sequence[ParameterGroup]:
        """Groups of trainable parameters with a rate or a decay of their own; those in none follow the options."""
        return ()

    def save(self, model: LanguageModel, directory: Path) -> Path:
        """Write the result below the run's `directory` in a format other tools load; return where.

        The default writes the whole model to `model/`, as Transformers does. A tuner whose `prepare` adds or renames
        parameters overrides it: it brings what was learnt into a copy of the model as it was, and calls
        `super().save(model.with_module(copy), directory)`, or writes a format of its own, as adapters have.
        """
        target = directory / "model"
        model.save(target)
        return target


class Optimizer(Component):
    """Slot `optimizer`: how parameters move along their gradients.

    What `build` returns is an optimizer of torch whose state is tensors (of the parameter's shape, or scalars) and
    numbers: that is what a checkpoint holds, and what a run resumes from to the bit. Where it has `train()` and
    `eval()`, as schedule-free optimizers do, they are called around training.
    """

    weight_decay: float = Field(0.0, ge=0, description="Weight decay of matrices; biases and norm weights have none.")

    @abstractmethod
    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of `groups`: each has `params`, their `names`, `lr` and `weight_decay`.

        A parameter may be a part of the whole one, where several processes share it out.
        """

    def bytes_per_parameter(self) -> float:
        """Bytes of state that one parameter takes, for `lmflow plan`; the default is that of Adam in float32."""
        return 8.0


class Schedule(Component):
    """Slot `schedule`: the learning rate over the steps of a run, as a share of the highest."""

    warmup: float = Field(
        0.03, ge=0, description="Share of the steps (or number of steps, from 1) that the learning rate rises over."
    )

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `total`, relative to the highest, after the warm-up.

        `step` and `total` count the steps of the warm-up too; `total` is 0 where the number of steps is not known. A
        function of its arguments alone. `rate` asks for it once the warm-up is over.
        """

    def warmup_steps(self, total: int) -> int:
        """Number of steps the learning rate rises over: `warmup` is a share of all steps below 1, a count from 1 on."""
        return min(math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup), total)

    def rate(self, step: int, total: int) -> float:
        """What the highest learning rate is multiplied by at `step`.

        Warm-up rises linearly and reaches 1 at its last step, so no step has a rate of zero (Transformers' schedules
        start at zero and waste the first step).
        """
        warmup = self.warmup_steps(total)
        return (step + 1) / warmup if step < warmup else self.factor(step, total)
