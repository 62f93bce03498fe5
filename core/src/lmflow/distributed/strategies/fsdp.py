"""Weights, gradients and optimizer state split over the processes by torch's `fully_shard`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.base import (
    MakeOptimizer,
    blocks,
    full_tensor,
    without_weights,
)
from lmflow.distributed.strategies.ddp import DDP


class FSDP(DDP):
    """Weights, gradients and optimizer state are split over the processes (FSDP2: torch's `fully_shard`)."""

    is_split = True

    def __init__(
        self, module: nn.Module, make_optimizer: MakeOptimizer, processes: Processes, limit: float | None
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._skeleton = without_weights(module)
        kind = "cuda" if torch.cuda.is_available() and next(module.parameters()).device.type == "cuda" else "cpu"
        mesh = init_device_mesh(kind, (processes.size,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module, make_optimizer, Processes(), limit)

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged, and split, after the step's last micro-batch."""
        self.forward.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self) -> float:
        """The norm of the gradient of all parameters, which is then scaled down to the limit."""
        norm = nn.utils.clip_grad_norm_(self.trainable.values(), self._limit)
        return float(full_tensor(norm))

    def full_module(self) -> nn.Module:
        """A copy of the model with all of its weights, on the CPU."""
        state = {name: full_tensor(value.detach()).cpu() for name, value in self.forward.state_dict().items()}
        self._skeleton.load_state_dict(state, assign=True)
        tie = getattr(self._skeleton, "tie_weights", None)
        if tie is not None:
            tie()
        return self._skeleton
