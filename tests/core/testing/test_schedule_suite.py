"""The suite of schedules passes good ones, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from lmflow.builtin.schedules import Constant, Cosine, Linear
from lmflow.components import Schedule
from lmflow.testing import ScheduleSuite


@pytest.mark.parametrize(
    "given",
    [Cosine(), Linear(), Constant(), Cosine(warmup=0, final_ratio=0.1), Linear(warmup=1000)],
    ids=["cosine", "linear", "constant", "cosine without warm-up", "all warm-up"],
)
class TestOurs(ScheduleSuite):
    @pytest.fixture
    def schedule(self, given: Schedule) -> Schedule:
        return given


class Broken(Schedule):
    """One over the steps taken: a good schedule, from which the broken ones below differ in a line."""

    name = "broken"

    def factor(self, step: int, total: int) -> float:
        return 1 / (1 + step)


class DividesByTheRest(Broken):
    def factor(self, step, total):
        return 1 - step / total if total else 1.0


class NeedsALength(Broken):
    def factor(self, step, total):
        return max(0.0, 1 - step / total)


class StartsAtZero(Broken):
    def rate(self, step, total):
        return min(step / 10, 1.0)


class EndsAtOnce(Broken):
    """With total 0 every step lies past the end."""

    def factor(self, step, total):
        return 1.0 if step < total else 0.0


class RisesFromZero(Broken):
    """Which the default warm-up hides."""

    def factor(self, step, total):
        return step / max(1, total)


class IsLow(Broken):
    def factor(self, step, total):
        return 0.1


class Peaks(Broken):
    def factor(self, step, total):
        return 2.0


class Counts(Broken):
    calls: ClassVar[Any] = itertools.count()

    def factor(self, step, total):
        return 1 / (1 + next(self.calls))


class NoWarmup(Broken):
    def rate(self, step, total):
        return self.factor(step, total)


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (DividesByTheRest, "test_rates_are_finite_and_not_negative", "found {"),
        (NeedsALength, "test_an_unknown_length_has_rates_too", "ZeroDivisionError"),
        (StartsAtZero, "test_the_first_step_moves", "is meant"),
        (EndsAtOnce, "test_an_unknown_length_has_rates_too", "past the end"),
        (RisesFromZero, "test_the_first_step_moves", "with a warm-up of 0"),
        (IsLow, "test_the_highest_rate_is_reached", "relative to the highest"),
        (Peaks, "test_no_rate_is_above_the_highest", "found 2.0 at step"),
        (Counts, "test_the_rate_depends_on_step_and_total_alone", "a counter or the last rate"),
        (NoWarmup, "test_the_warm_up_is_respected", "override factor() alone"),
    ],
)
def test_a_broken_schedule_fails_its_check(broken: type[Schedule], check: str, said: str, examine: Callable[..., Any]):
    assert examine(ScheduleSuite, schedule=Broken(), only=check)[check].outcome == "passed"
    report = examine(ScheduleSuite, schedule=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_a_peak_can_be_declared(examine: Callable[..., Any]):
    check = "test_no_rate_is_above_the_highest"
    assert examine(ScheduleSuite, schedule=Peaks(), highest=2.0, only=check)[check].outcome == "passed"
