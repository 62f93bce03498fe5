"""A least-squares problem of two small parameters, on which optimizers are tried: milliseconds, and nothing random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmflow.components import Optimizer
from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.ddp import DDP
from lmflow.training.optimizer import parameter_groups

INPUTS, OUTPUTS, SAMPLES = 8, 6, 16


class Regression(nn.Module):
    """A linear map with a bias, in float32, and what it is to become."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.5 * torch.randn(OUTPUTS, INPUTS, generator=generator))
        self.bias = nn.Parameter(0.5 * torch.randn(OUTPUTS, generator=generator))
        self._weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
        self._bias = torch.randn(OUTPUTS, generator=generator)

    def forward(self, step: int) -> Tensor:
        """The mean squared error on the inputs of a step, a scalar."""
        inputs = torch.randn(SAMPLES, INPUTS, generator=torch.Generator().manual_seed(step))
        error = nn.functional.linear(inputs, self.weight - self._weight, self.bias - self._bias)
        return error.square().mean()


def begin(optimizer: Optimizer, learning_rate: float, *, weight_decay: float = 0.0) -> DDP:
    """The problem at its start, with an optimizer as a trainer builds it; in train mode where it has modes."""

    def make(parameters: object) -> torch.optim.Optimizer:
        named = dict(module.named_parameters())
        return optimizer.build(parameter_groups(named, learning_rate, weight_decay, lambda _: None))

    module = Regression()
    strategy = DDP(module, make, Processes(), None)
    switch(strategy, "train")
    return strategy


def switch(strategy: DDP, mode: str) -> None:
    """Put the optimizer into `train` or `eval` mode where it has such."""
    getattr(strategy.optimizer, mode, lambda: None)()


def take_steps(strategy: DDP, first: int, end: int) -> None:
    """The steps from `first` to before `end`, each on inputs of its own."""
    for step in range(first, end):
        strategy.backward(strategy.forward(step))
        strategy.step()


def push(strategy: DDP, scale: float = 1.0) -> None:
    """One step with gradients that do not depend on the parameters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in strategy.trainable.values():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    strategy.step()


def mean_loss(strategy: DDP) -> float:
    """The mean loss over the inputs of eight steps, in eval mode."""
    switch(strategy, "eval")
    with torch.no_grad():
        loss = sum(float(strategy.forward(step)) for step in range(8)) / 8
    switch(strategy, "train")
    return loss


def build_for(optimizer: Optimizer, parameters: dict[str, Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of these tensors, which become parameters, without weight decay."""
    named = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in parameters.items()}
    built = optimizer.build(parameter_groups(named, learning_rate, 0.0, lambda _: None))
    getattr(built, "train", lambda: None)()
    return built


def parameters_of(built: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameters of an optimizer by the names their groups give them."""
    return {name: parameter for group in built.param_groups for name, parameter in zip(group["names"], group["params"])}
