"""Trainable parameters by name, and tensors of which each process may have a part."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Groups = list[dict[str, Any]]


MakeOptimizer = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]
"""The optimizer of trainable parameters by name; they may be parts of the whole ones."""


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


def full_tensor(value: Tensor) -> Tensor:
    """All of a tensor of which each process may have a part."""
    gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def shard_like(value: Any, example: Tensor) -> Any:
    """A tensor of the parameter's shape split as the parameter is; anything else as it comes."""
    if not isinstance(value, Tensor) or value.shape != example.shape or not hasattr(example, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    split: Any = example
    return distribute_tensor(value.to(split.device), split.device_mesh, split.placements)


def copy_into(value: Tensor, target: Tensor) -> None:
    """Copy a whole value into a tensor of which this process may have a part."""
    split = shard_like(value, target)
    if split is value:
        target.copy_(value)
    else:
        target.to_local().copy_(split.to_local())  # type: ignore[attr-defined]
