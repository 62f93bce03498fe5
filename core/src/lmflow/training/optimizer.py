"""Parameters in the groups that an optimizer is built with: one learning rate and one weight decay in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lmflow.components import Optimizer, ParameterGroup, Tuner
from lmflow.errors import TrainingError
from lmflow.models.heads import split_heads
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions


def build_optimizer(
    optimizer: Optimizer,
    tuner: Tuner | None,
    model: LanguageModel,
    options: TrainingOptions,
    parameters: Mapping[str, nn.Parameter],
) -> torch.optim.Optimizer:
    """The optimizer of trainable parameters by name, in the groups that tuner and model ask for."""
    _, known = split_heads(parameters)
    declared = tuner.parameter_groups(known) if tuner else ()
    rate, decay = options.learning_rate, optimizer.weight_decay
    return optimizer.build(parameter_groups(parameters, rate, decay, model.learning_rate, declared))


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    own_rate: Callable[[str], float | None],
    declared: Sequence[ParameterGroup] = (),
) -> list[dict[str, Any]]:
    """Groups as torch's optimizers take them, and the parameters' `names`: decay on matrices, none on biases and norms.

    `declared` are a tuner's groups; `own_rate` gives the highest rate of a parameter by name where the model has one,
    and `learning_rate` and `weight_decay` hold for all else. Raises TrainingError where two declared groups name one
    parameter.
    """
    rates, decays = {}, {}
    for group in declared:
        for name in group.names:
            if name in rates:
                raise TrainingError(f"The tuner puts the parameter {name} into two groups.")
            rates[name], decays[name] = group.learning_rate, group.weight_decay
    settings: dict[tuple[float, float], list[str]] = {}
    for name, parameter in parameters.items():
        rate = rates.get(name) or own_rate(name) or learning_rate
        decay = decays.get(name)
        if decay is None:
            decay = weight_decay if parameter.dim() >= 2 else 0.0
        settings.setdefault((rate, decay), []).append(name)
    return [
        {
            "params": [parameters[name] for name in names],
            "names": names,
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": decay,
        }
        for (rate, decay), names in settings.items()
    ]
