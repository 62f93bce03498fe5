"""The forward and backward passes of an optimizer step, over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.ddp import DDP
from lmflow.training.objective import Loss, Objective

Sequences = tuple[TokenSequence, ...]
"""The sequences of one item."""


@dataclass(frozen=True)
class Passes:
    """What all passes of a run have in common."""

    module: nn.Module
    processes: Processes
    pad_id: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    compiled: AbstractContextManager[Any] | None
    """Within it the model's layers run compiled; entered for each pass."""

    def accumulate(
        self, strategy: DDP, items: Sequence[Sequences], batches: Sequence[Batch], objective: Objective, units: float
    ) -> dict[str, Tensor]:
        """Forward and backward passes of a step; this process's sums of the loss and of the objective's metrics.

        Gradients are those of the sum over all processes, divided by `units`: the step's targets, or its items.
        """
        sums = {"loss": torch.zeros((), device=self.device)}
        passes = len(batches)
        if strategy.is_split:
            passes = int(self.processes.max(passes))
        for index in range(passes):
            idle = index >= len(batches) or self.processes.rank >= len(items)
            batch = batches[index] if index < len(batches) else self.idle_batch(items)
            with strategy.gradient_sync(index == passes - 1), self.compiled or nullcontext():
                with self.autocast():
                    found = objective(strategy.forward, self.module, batch.to(self.device))
                if idle:  # this process only takes part in what all do together
                    found = Loss(found.total * 0, dict.fromkeys(found.metrics, 0.0))
                # Data-parallel wrappers average over processes; the sum is what is wanted.
                strategy.backward(found.total * (self.processes.size / units))
            sums["loss"] += found.total.detach()
            for name, value in found.metrics.items():
                so_far = sums.get(name, torch.zeros((), device=self.device))
                sums[name] = so_far + torch.as_tensor(value, device=self.device).detach()
        return sums

    def means(self, sums: Mapping[str, Tensor], units: float) -> dict[str, float]:
        """The sums of all processes by what they are divided by; names are those of any process."""
        names = list(sums)
        if self.processes.size > 1:
            names = list(dict.fromkeys(name for each in self.processes.gather(names) for name in each))
        zero = torch.zeros(())
        return {name: self.processes.sum(float(sums.get(name, zero))) / units for name in names}

    def idle_batch(self, items: Sequence[Sequences]) -> Batch:
        """What adds nothing, for a process that must take part in the exchange of gradients all the same."""
        return collate([replace(idle, loss_mask=[False] * len(idle)) for idle in items[0]], self.pad_id)
