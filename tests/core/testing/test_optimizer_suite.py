"""The suite of optimizers passes good ones, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmflow.builtin.adamw import AdamW
from lmflow.components import Optimizer
from lmflow.testing import OptimizerSuite


class TestAdamW(OptimizerSuite):
    @pytest.fixture
    def optimizer(self) -> Optimizer:
        return AdamW()


class Momentum(torch.optim.Optimizer):
    """Gradient descent with momentum and decoupled decay, from which the broken ones below differ in a line."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
        velocity.mul_(0.9).add_(parameter.grad)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(velocity, alpha=group["lr"])


class Good(Optimizer):
    """Momentum: a good optimizer."""

    name = "good"
    kind: Any = Momentum

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return self.kind(list(groups))

    def bytes_per_parameter(self) -> float:
        return 4.0


class TestGood(OptimizerSuite):
    @pytest.fixture
    def optimizer(self) -> Optimizer:
        return Good()


class IgnoresGroups(Good):
    def build(self, groups: Any) -> torch.optim.Optimizer:
        return Momentum(list(groups)[:1])


class Ascends(Momentum):
    def move(self, parameter, group):
        parameter.add_(parameter.grad, alpha=group["lr"])


class Noisy(Momentum):
    def move(self, parameter, group):
        super().move(parameter, group)
        parameter.add_(1e-6 * torch.randn(parameter.shape))


class RemembersTheRate(Momentum):
    def __init__(self, groups):
        super().__init__(groups)
        self.rates = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}

    def move(self, parameter, group):
        super().move(parameter, {**group, "lr": self.rates[id(parameter)]})


class OneRate(Momentum):
    def move(self, parameter, group):
        super().move(parameter, {**group, "lr": self.param_groups[0]["lr"]})


class NoDecay(Momentum):
    def move(self, parameter, group):
        super().move(parameter, {**group, "weight_decay": 0.0})


class MovesWithoutGradient(Momentum):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
        super().step()


class MakesStateAtOnce(Momentum):
    def __init__(self, groups):
        super().__init__(groups)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["velocity"] = torch.zeros_like(parameter)

    def move(self, parameter, group):
        velocity = self.state[parameter].get("velocity")
        if velocity is not None:
            parameter.sub_(velocity.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


class DividesByZero(Momentum):
    def move(self, parameter, group):
        parameter.sub_(parameter.grad / parameter.grad.norm(), alpha=group["lr"])


class KeepsAList(Momentum):
    def move(self, parameter, group):
        super().move(parameter, group)
        self.state[parameter].setdefault("history", []).append(float(parameter.grad.norm()))


class CountsElsewhere(Momentum):
    """The count of steps, on which the update depends, is no state of a parameter."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        super().step()

    def move(self, parameter, group):
        super().move(parameter, {**group, "lr": group["lr"] / self.count**0.5})


class Claims(Good):
    def bytes_per_parameter(self) -> float:
        return 8.0


class OneMode(Momentum):
    def train(self) -> None:
        """Alone: there is no eval()."""


class LosesMomentumInEval(Momentum):
    def train(self) -> None:
        pass

    def eval(self) -> None:
        self.state.clear()


class ByNorm(Momentum):
    """The update has the length of the rate for the whole parameter."""

    def move(self, parameter, group):
        super().move(parameter, {**group, "lr": group["lr"] / (1 + float(parameter.grad.norm()))})


def good(kind: type[Momentum]) -> Optimizer:
    return Good(kind=kind)


BROKEN: list[tuple[Optimizer, str, str]] = [
    (IgnoresGroups(), "test_every_parameter_is_in_a_group", "expected every parameter"),
    (good(Ascends), "test_it_moves_down_a_loss", "to halve the loss"),
    (good(Noisy), "test_it_repeats", "leave torch's random numbers alone"),
    (good(RemembersTheRate), "test_the_rate_of_a_group_is_honoured", "no movement at rate 0"),
    (good(OneRate), "test_groups_have_rates_of_their_own", "one group's rate is used for all"),
    (good(NoDecay), "test_weight_decay_is_honoured", "make the matrix smaller"),
    (good(MovesWithoutGradient), "test_a_parameter_without_gradient_is_left_alone", "to stay as it is; it moved"),
    (good(MakesStateAtOnce), "test_a_parameter_without_gradient_is_left_alone", "whose state was dropped"),
    (good(DividesByZero), "test_gradients_of_every_size_are_taken", "after gradients of 0"),
    (good(KeepsAList), "test_state_is_tensors_and_numbers", "history kept in a list"),
    (good(CountsElsewhere), "test_a_resumed_training_equals_an_uninterrupted_one", "such as a step count"),
    (Claims(), "test_bytes_per_parameter_is_what_it_takes", "within a tenth of 4.00; found 8.00"),
    (good(OneMode), "test_modes_can_be_switched", "found train() only"),
    (good(LosesMomentumInEval), "test_modes_can_be_switched", "as if nobody had looked"),
    (good(ByNorm), "test_a_part_moves_as_within_the_whole", "norms or"),
]


@pytest.mark.parametrize(("broken", "check", "said"), BROKEN, ids=[f"{i}-{row[1]}" for i, row in enumerate(BROKEN)])
def test_a_broken_optimizer_fails_its_check(broken: Optimizer, check: str, said: str, examine: Callable[..., Any]):
    report = examine(OptimizerSuite, optimizer=lambda: broken, only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_one_that_looks_at_whole_matrices_says_so(examine: Callable[..., Any]):
    check = "test_a_part_moves_as_within_the_whole"
    declared = {"moves_parts_alike": False, "only": check}
    assert examine(OptimizerSuite, optimizer=lambda: good(ByNorm), **declared)[check].outcome == "passed"
    assert examine(OptimizerSuite, optimizer=lambda: good(Momentum), **declared)[check].outcome == "failed"


def test_a_suite_without_an_optimizer_says_what_to_write(examine: Callable[..., Any]):
    reports = examine(OptimizerSuite)
    assert {report.outcome for report in reports.values()} == {"failed"}
    assert all("write a fixture `optimizer`" in report.message for report in reports.values())
