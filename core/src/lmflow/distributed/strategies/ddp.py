"""How a run's weights, gradients and optimizer state lie in its processes.

Every method but `forward` has to be called by all processes. What goes in and comes out by name is whole, and does not
depend on how many processes there are, so a checkpoint of one arrangement continues in any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.base import (
    MakeOptimizer,
    copy_into,
    full_tensor,
    shard_like,
    trainable_parameters,
)
from lmflow.errors import TrainingError


class DDP:
    """Every process has all of the model; of several, gradients are averaged once a step (DistributedDataParallel)."""

    steps_when_clipping = False
    """Whether `clip` has moved the parameters already."""
    is_split = False
    """Whether the processes meet in every forward pass, of which each must therefore make as many."""

    def __init__(
        self, module: nn.Module, make_optimizer: MakeOptimizer, processes: Processes, limit: float | None
    ) -> None:
        self.trainable = trainable_parameters(module)
        self.optimizer = make_optimizer(self.trainable)
        self._module = module
        self._processes = processes
        self._limit = math.inf if limit is None else limit
        self.rewrap()

    def rewrap(self) -> None:
        """Set up the exchange of gradients, anew where other parameters have `requires_grad`."""
        module = self._module
        self.forward: Any = module
        if self._processes.size > 1:
            device = next(module.parameters()).device
            self.forward = nn.parallel.DistributedDataParallel(
                module,
                [device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,  # else each gradient is there twice
            )

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a micro-batch: gradients are exchanged after the step's last."""
        wrapped = isinstance(self.forward, nn.parallel.DistributedDataParallel)
        return self.forward.no_sync() if wrapped and not last else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to the step's."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self) -> float:
        """The norm of the gradient of all parameters, which is then scaled down to the limit.

        Raises TrainingError where several processes exchange gradients and a parameter has none: theirs would be apart
        from then on.
        """
        if self._processes.size > 1:
            self._check_gradients()
        return float(nn.utils.clip_grad_norm_(self.trainable.values(), self._limit))

    def _check_gradients(self) -> None:
        missed = [name for name, each in self.trainable.items() if each.requires_grad and each.grad is None]
        if missed:
            raise TrainingError(
                f"{len(missed)} parameters that train have no gradient in this step, such as {missed[0]}. In several "
                "processes the objective of every step has to reach all of them; use one process "
                "(--launch.processes 1), or one objective for all that trains."
            )

    def step(self) -> None:
        """Move the parameters, and forget the gradients."""
        self.optimizer.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, on the CPU."""
        return {name: full_tensor(parameter.detach()).cpu().contiguous() for name, parameter in self.trainable.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`."""
        for name, parameter in self.trainable.items():
            copy_into(weights[name], parameter.data)
        torch.clear_autocast_cache()

    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps of each parameter: tensors, on the CPU, and numbers."""
        state = self.optimizer.state
        return {
            name: {
                key: full_tensor(value).cpu() if isinstance(value, Tensor) else value for key, value in entries.items()
            }
            for name, parameter in self.trainable.items()
            if (entries := state.get(parameter))
        }

    def set_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """The inverse of `optimizer_state`."""
        names = {parameter: name for name, parameter in self.trainable.items()}
        order = [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]
        full = self.optimizer.state_dict()
        full["state"] = {
            number: {key: shard_like(value, self.trainable[name]) for key, value in state[name].items()}
            for number, name in enumerate(order)
            if name in state
        }
        self.optimizer.load_state_dict(full)

    def full_module(self) -> nn.Module:
        """The model with all of its weights in this process."""
        module: nn.Module = self.forward
        return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
