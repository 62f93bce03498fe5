"""The conformance suite for schedules: what every schedule promises to the trainer."""

from __future__ import annotations

import math
from itertools import product
from typing import ClassVar

import pytest

from lmflow.components import Schedule
from lmflow.testing.runs import supply

TOTALS = (1, 2, 3, 10, 101)
"""Lengths of runs, in steps."""
BEYOND = 3
"""Steps past the end that are looked at too: an aligner may take more than it planned."""
NEARLY = 0.9
"""Share of the highest rate that counts as reaching it."""


class ScheduleSuite:
    """An examination of one schedule; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import ScheduleSuite

        class TestMySchedule(ScheduleSuite):
            @pytest.fixture
            def schedule(self):
                return MySchedule(final_ratio=0.1)

    Each test is one requirement, and its docstring says which. No model is needed.
    """

    highest: ClassVar[float] = 1.0
    """Largest factor the schedule may have; above 1 for those that exceed `--training.learning_rate` on purpose."""
    tolerance: ClassVar[float] = 1e-9
    """How far above `highest` rounding may go."""

    @pytest.fixture
    def schedule(self) -> Schedule:
        """The schedule under examination; every suite supplies its own."""
        supply(self, "schedule")

    def test_rates_are_finite_and_not_negative(self, schedule: Schedule) -> None:
        """Every step of runs of any length has a finite rate from 0 on, and so have a few steps past the end."""
        for total in TOTALS:
            wrong = {step: rate for step, rate in self._rates(schedule, total).items() if not self._is_rate(rate)}
            assert not wrong, (
                f"expected finite rates from 0 on over {total} steps; found {wrong} by step. Usual cause: a division "
                "by total - warmup, or a curve that goes on past its end."
            )

    def test_an_unknown_length_has_rates_too(self, schedule: Schedule) -> None:
        """With `total` 0, which stands for a length that is not known, every step has a finite, positive rate."""
        for warmup, step in product((schedule.warmup, 0.0), (0, 1, 10, 1000)):
            try:
                rate = _with_warmup(schedule, warmup).rate(step, 0)
            except (ArithmeticError, ValueError) as error:
                pytest.fail(f"expected a rate with total 0; found {type(error).__name__}: {error}. See max(1, total).")
            assert self._is_rate(rate), f"expected a finite rate at step {step} of an unknown number; found {rate!r}"
            assert rate > 0, (
                f"expected a rate above 0 at step {step} of an unknown number, with a warm-up of {warmup:g}; found "
                f"{rate!r}, with which nothing is trained. Usual cause: with total 0 every step lies past the end."
            )

    def test_the_first_step_moves(self, schedule: Schedule) -> None:
        """The rate of the first step is above 0, with the warm-up and without: no step is wasted."""
        for warmup, total in product((schedule.warmup, 0.0), TOTALS):
            rate = _with_warmup(schedule, warmup).rate(0, total)
            assert rate > 0, (
                f"expected a rate above 0 at the first of {total} steps, with a warm-up of {warmup:g}; found {rate!r}. "
                "Usual cause: step / total or step / warmup where (step + 1) is meant."
            )

    def test_the_highest_rate_is_reached(self, schedule: Schedule) -> None:
        """Without a warm-up some step of a run has `highest`, or nearly: `--training.learning_rate` is what it says."""
        total = TOTALS[-1]
        found = max(_with_warmup(schedule, 0.0).rate(step, total) for step in range(total))
        assert found >= NEARLY * self.highest, (
            f"expected a rate of {self.highest:g} at some of {total} steps; found {found:g} at most. Usual cause: the "
            "curve has ended before the run begins, or is scaled; `factor` is relative to the highest rate."
        )

    def test_no_rate_is_above_the_highest(self, schedule: Schedule) -> None:
        """No rate exceeds `highest`, which is 1 unless the suite says otherwise: the rate set is the highest of all."""
        for total in TOTALS:
            rates = self._rates(schedule, total)
            step = max(rates, key=lambda each: rates[each])
            assert rates[step] <= self.highest + self.tolerance, (
                f"expected no rate above {self.highest:g}; found {rates[step]!r} at step {step} of {total}. Usual "
                "cause: a peak of the schedule's own; declare it with the suite's `highest`."
            )

    def test_the_rate_depends_on_step_and_total_alone(self, schedule: Schedule) -> None:
        """Asked again, in another order, or of a copy, a step has the same rate, so that a resumed run goes on."""
        again = type(schedule).model_validate(schedule.model_dump())
        for total in TOTALS:
            straight = self._rates(schedule, total)
            backwards = {step: schedule.rate(step, total) for step in reversed(straight)}
            fresh = {step: again.rate(step, total) for step in straight}
            apart = [step for step, rate in straight.items() if not rate == backwards[step] == fresh[step]]
            assert not apart, (
                f"expected one rate for each step of {total}, however it is asked; found others at steps {apart[:3]}. "
                "Usual cause: a counter or the last rate kept on the schedule; compute from step and total."
            )

    def test_the_warm_up_is_respected(self, schedule: Schedule) -> None:
        """Over the `warmup` steps, a share or a number, the rate rises in a straight line to what comes after."""
        for warmup, steps in ((0.1, 10), (5, 5)):
            warming = _with_warmup(schedule, warmup)
            found = [warming.rate(step, 100) for step in range(steps)]
            expected = [(step + 1) / steps for step in range(steps)]
            off = max(abs(one - other) for one, other in zip(found, expected))
            assert off <= 1e-6, (
                f"expected a warm-up of {warmup:g} to rise in {steps} equal steps to 1; found {found}. Usual cause: "
                "rate() overridden without the warm-up; override factor() alone."
            )

    def _rates(self, schedule: Schedule, total: int) -> dict[int, float]:
        """The rate of each step of a run, and of a few past its end."""
        return {step: schedule.rate(step, total) for step in range(total + BEYOND)}

    def _is_rate(self, value: object) -> bool:
        return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _with_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """The same schedule with another warm-up: the default one hides the first values of `factor`."""
    return schedule.model_copy(update={"warmup": warmup})
