"""Objectives: what a step minimises, as a sum over a batch that the trainer normalises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from lmflow.data.collate import Batch
from lmflow.errors import TrainingError
from lmflow.training.loss import negative_log_likelihood

RESERVED = frozenset(
    {"loss", "step", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "seconds", "iteration"}
)
"""What a step's line of metrics holds already."""

Unit = Literal["token", "item"]
"""What a sum is divided by: a step's targets, or its items."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective gives for a batch: sums, each to be divided by the step's targets or items."""

    total: Tensor
    """What is minimised, a scalar with a gradient."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Further sums over the same targets or items, by name, such as an accuracy; no gradient is taken.

    The log has their means beside the loss, evaluations as `eval_NAME`. None of RESERVED names one.
    """

    def __post_init__(self) -> None:
        if taken := RESERVED & self.metrics.keys():
            raise TrainingError(f"an objective's metric is called {min(taken)}, as the trainer's own is; rename it")


class Objective(ABC):
    """What a step minimises. The trainer adds it up over micro-batches and processes, and divides by `per`."""

    per: Unit = "token"

    @abstractmethod
    def __call__(self, forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        """The loss of a batch on the model's device.

        `forward` is what is called with inputs (it may be wrapped for several processes); `module` is the model in it.
        """


class NextToken(Objective):
    """The negative log-likelihood of the targets, in nats."""

    def __call__(self, forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        """See `negative_log_likelihood`."""
        return Loss(negative_log_likelihood(forward, module, batch))


class FunctionObjective(Objective):
    """A function of (forward, module, batch) that returns a sum, or a `Loss`."""

    def __init__(self, function: Callable[[nn.Module, nn.Module, Batch], Loss | Tensor], per: Unit = "token") -> None:
        self.function = function
        self.per = per

    def __call__(self, forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        """What the function returns."""
        found = self.function(forward, module, batch)
        return found if isinstance(found, Loss) else Loss(found)
