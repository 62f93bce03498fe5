"""How a run's weights, gradients and optimizer state lie in its processes.

Every method but `forward` has to be called by all processes. What goes in and comes out by name is whole, and does not
depend on how many processes there are, so a checkpoint of one arrangement continues in any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.launching.group import Group

Groups = list[dict[str, Any]]
MakeOptimizer = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]
"""The optimizer of trainable parameters by name; they may be parts of the whole ones."""


class Replicated:
    """Every process has all of the model; of several, gradients are averaged once a step (DistributedDataParallel)."""

    steps_when_clipping = False
    """Whether `clip` has moved the parameters already."""
    is_split = False
    """Whether the processes meet in every forward pass, of which each must therefore make as many."""

    def __init__(self, module: nn.Module, make_optimizer: MakeOptimizer, group: Group, limit: float | None) -> None:
        self.trainable = trainable_parameters(module)
        self.optimizer = make_optimizer(self.trainable)
        self.forward: Any = module
        self._limit = math.inf if limit is None else limit
        if group.size > 1:
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
        """The norm of the gradient of all parameters, which is then scaled down to the limit."""
        return float(nn.utils.clip_grad_norm_(self.trainable.values(), self._limit))

    def step(self) -> None:
        """Move the parameters, and forget the gradients."""
        self.optimizer.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, on the CPU."""
        return {name: whole(parameter.detach()).cpu().contiguous() for name, parameter in self.trainable.items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`."""
        for name, parameter in self.trainable.items():
            put(weights[name], parameter.data)
        torch.clear_autocast_cache()

    def optimizer_state(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps of each parameter: tensors, on the CPU, and numbers."""
        state = self.optimizer.state
        return {
            name: {key: whole(value).cpu() if isinstance(value, Tensor) else value for key, value in entries.items()}
            for name, parameter in self.trainable.items()
            if (entries := state.get(parameter))
        }

    def set_optimizer_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """The inverse of `optimizer_state`."""
        names = {parameter: name for name, parameter in self.trainable.items()}
        order = [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]
        full = self.optimizer.state_dict()
        full["state"] = {
            number: {key: like(value, self.trainable[name]) for key, value in state[name].items()}
            for number, name in enumerate(order)
            if name in state
        }
        self.optimizer.load_state_dict(full)

    def whole_module(self) -> nn.Module:
        """The model with all of its weights in this process."""
        module: nn.Module = self.forward
        return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


class Sharded(Replicated):
    """Weights, gradients and optimizer state are split over the processes (FSDP2: torch's `fully_shard`)."""

    is_split = True

    def __init__(self, module: nn.Module, make_optimizer: MakeOptimizer, group: Group, limit: float | None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._skeleton = without_weights(module)
        kind = "cuda" if torch.cuda.is_available() and next(module.parameters()).device.type == "cuda" else "cpu"
        mesh = init_device_mesh(kind, (group.size,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module, make_optimizer, Group(), limit)

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged, and split, after the step's last micro-batch."""
        self.forward.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self) -> float:
        """The norm of the gradient of all parameters, which is then scaled down to the limit."""
        norm = nn.utils.clip_grad_norm_(self.trainable.values(), self._limit)
        return float(whole(norm))

    def whole_module(self) -> nn.Module:
        """A copy of the model with all of its weights, on the CPU."""
        state = {name: whole(value.detach()).cpu() for name, value in self.forward.state_dict().items()}
        self._skeleton.load_state_dict(state, assign=True)
        tie = getattr(self._skeleton, "tie_weights", None)
        if tie is not None:
            tie()
        return self._skeleton


def arrange(
    strategy: str, module: nn.Module, make_optimizer: MakeOptimizer, group: Group, limit: float | None
) -> Replicated:
    """The arrangement called `strategy`; one process by itself has everything, whatever it is called."""
    if group.size == 1 or strategy == "ddp":
        return Replicated(module, make_optimizer, group, limit)
    if strategy == "fsdp":
        return Sharded(module, make_optimizer, group, limit)
    from lmflow.training.zero import Zero

    return Zero(module, make_optimizer, group, limit, stage=int(strategy.removeprefix("zero")))


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, by name; tied ones appear once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def blocks(module: nn.Module) -> list[nn.Module]:
    """The layers that are gathered one at a time: those the model's author says must not be split."""
    names = {name for each in module.modules() for name in getattr(each, "_no_split_modules", None) or ()}
    return [each for each in module.modules() if type(each).__name__ in names]


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of the module whose parameters take no memory."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in module.parameters()
    }
    return copy.deepcopy(module, memo)


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process may have a part."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def like(value: Any, example: Tensor) -> Any:
    """A tensor of the parameter's shape split as the parameter is; anything else as it comes."""
    if not isinstance(value, Tensor) or value.shape != example.shape or not hasattr(example, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = example
    return distribute_tensor(value.to(split.device), split.device_mesh, split.placements)


def put(value: Tensor, target: Tensor) -> None:
    """Copy a whole value into a tensor of which this process may have a part."""
    split = like(value, target)
    if split is value:
        target.copy_(value)
    else:
        target.to_local().copy_(split.to_local())  # type: ignore[attr-defined]
