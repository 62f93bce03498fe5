"""The schedule against arithmetic by hand, Transformers' own, and its properties."""

import itertools

import pytest
import torch
from transformers import get_scheduler

from lmflow.builtin.schedules import Constant, Cosine, Linear
from lmflow.components import Schedule


def make(schedule: str, warmup: float, minimum: float = 0.0) -> Schedule:
    if schedule == "constant":
        return Constant(warmup=warmup)
    return (Cosine if schedule == "cosine" else Linear)(warmup=warmup, final_ratio=minimum)


def factors(schedule: str, total: int, warmup: int, minimum: float = 0.0) -> list[float]:
    return [make(schedule, warmup, minimum).rate(step, total) for step in range(total)]


def test_linear_by_hand():
    # two steps of warm-up: 1/2, 2/2; then 4 steps from 1 towards 0: 1, 3/4, 2/4, 1/4
    assert factors("linear", 6, 2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_constant_by_hand():
    assert factors("constant", 4, 2) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_after_warmup_equals_transformers(schedule: str):
    total, warmup = 20, 5
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert factors(schedule, total, warmup)[warmup:] == pytest.approx(expected[warmup:], abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_falls_monotonically_to_the_minimum(schedule: str):
    values = factors(schedule, 50, 5, minimum=0.1)
    assert all(a >= b for a, b in itertools.pairwise(values[5:]))
    assert min(values[5:]) > 0.1
    assert make(schedule, 5, 0.1).rate(50, 50) == pytest.approx(0.1)


def test_no_step_is_wasted():
    assert all(value > 0 for name in ("cosine", "linear", "constant") for value in factors(name, 10, 3))


@pytest.mark.parametrize(
    ("warmup", "total", "steps"), [(0, 10, 0), (0.1, 10, 1), (0.03, 10, 1), (3, 10, 3), (99, 10, 10)]
)
def test_warmup_steps(warmup: float, total: int, steps: int):
    assert Constant(warmup=warmup).warmup_steps(total) == steps


@pytest.mark.parametrize("schedule", [Cosine(), Linear(warmup=0), Constant()], ids=lambda each: each.name)
def test_an_unknown_number_of_steps_leaves_the_rate_at_its_highest(schedule: Schedule):
    assert [schedule.rate(step, 0) for step in (0, 1, 10, 1000)] == [1.0] * 4
