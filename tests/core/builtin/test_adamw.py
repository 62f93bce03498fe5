"""AdamW: the published rule, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lmflow.builtin.adamw import AdamW


def test_two_steps_by_hand():
    """arXiv 1711.05101, algorithm 2, on one number: gradients 0.5 and -1, rate 0.1, decay 0.2."""
    parameter = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = AdamW(beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.2).build(
        [{"params": [parameter], "names": ["p"], "lr": 0.1, "weight_decay": 0.2}]
    )
    value, mean, square = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -1.0), start=1):
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        update = (mean / (1 - 0.8**step)) / (math.sqrt(square / (1 - 0.9**step)) + 1e-3)
        value = value - 0.1 * 0.2 * value - 0.1 * update
        parameter.grad = torch.tensor([[gradient]])
        optimizer.step()
        assert parameter.item() == pytest.approx(value, rel=1e-6)


def test_groups_keep_their_rate_decay_and_names():
    groups = [
        {"params": [nn.Parameter(torch.zeros(2))], "names": ["a"], "lr": 0.5, "weight_decay": 0.0},
        {"params": [nn.Parameter(torch.zeros(2))], "names": ["b"], "lr": 0.25, "weight_decay": 0.1},
    ]
    built = AdamW(weight_decay=0.7).build(groups)
    assert [(g["lr"], g["weight_decay"], g["names"]) for g in built.param_groups] == [
        (0.5, 0.0, ["a"]),
        (0.25, 0.1, ["b"]),
    ]
    assert all(g["betas"] == (0.9, 0.999) and g["eps"] == 1e-8 for g in built.param_groups)


def test_without_a_gradient_a_parameter_and_its_state_stay():
    """What rests in a rotation does not even decay."""
    moving, resting = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    built = AdamW().build([{"params": [moving, resting], "names": ["m", "r"], "lr": 0.1, "weight_decay": 0.5}])
    moving.grad = torch.ones(2, 2)
    built.step()
    assert torch.equal(resting, torch.ones(2, 2))
    assert not torch.equal(moving, torch.ones(2, 2))
    assert resting not in built.state


def test_the_state_is_as_large_as_planned():
    parameter = nn.Parameter(torch.zeros(100, 100))
    optimizer = AdamW()
    built = optimizer.build([{"params": [parameter], "names": ["p"], "lr": 0.1, "weight_decay": 0.0}])
    parameter.grad = torch.ones(100, 100)
    built.step()
    taken = sum(value.numel() * value.element_size() for value in built.state[parameter].values())
    assert taken / parameter.numel() == pytest.approx(optimizer.bytes_per_parameter(), rel=0.001)


@pytest.mark.parametrize(
    "options", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0}, {"weight_decay": -1}, {"momentum": 0.9}], ids=str
)
def test_options_out_of_bounds(options: dict[str, float]):
    with pytest.raises(ValidationError):
        AdamW(**options)
