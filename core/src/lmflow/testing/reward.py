"""The conformance suite for rewards: what every reward promises to those who rank by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest

from lmflow.components import Reward
from lmflow.data.sample import Message, Sample
from lmflow.errors import LmflowError
from lmflow.testing.runs import supply

COMPLETIONS = ("four", "Five, I think.", "", "four four four four four four four four", "vier\nfünf — 四 🙂", "4")
"""Completions of every sort that a model gives: right ones, wrong ones, none at all, repeated ones, other scripts."""


class RewardSuite:
    """An examination of one reward; inherit from it in a class whose name begins with Test, and supply the reward.

        from lmflow.testing import RewardSuite

        class TestMyReward(RewardSuite):
            @pytest.fixture
            def reward(self):
                return MyReward(words=8)

    Each test is one requirement, and its docstring says which. A reward that needs more than a text, such as a field
    of the record, supplies the fixtures `samples` and `completions` too, of equal length and at least three long.
    """

    tolerance: float = 1e-5
    """Largest difference that rounding explains between scores of one completion in batches of different shape."""

    @pytest.fixture
    def reward(self) -> Reward:
        """The reward under examination; every suite supplies its own."""
        supply(self, "reward")

    @pytest.fixture
    def completions(self) -> Sequence[str]:
        """What is scored."""
        return COMPLETIONS

    @pytest.fixture
    def samples(self, completions: Sequence[str]) -> Sequence[Sample]:
        """The prompt of each completion."""
        return [question(number) for number in range(len(completions))]

    # What comes back

    def test_one_score_per_completion(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """`score` returns as many numbers as there are completions: for all, for one, and for none."""
        for count in (len(completions), 1, 0):
            scores = reward.score(samples[:count], completions[:count])
            assert len(scores) == count, (
                f"expected {count} scores for {count} completions; found {len(scores)}. Usual cause: completions that "
                "are skipped (empty ones?), or a batch loop that leaves out the rest."
            )

    def test_scores_are_finite_numbers(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """Every score is a finite number, also for an empty completion and for one of another script."""
        for completion, score in zip(completions, reward.score(samples, completions), strict=True):
            assert is_finite(score), (
                f"expected a finite number for {completion!r}; found {score!r}. Usual cause: a division by the length "
                "of an empty completion, a logarithm of 0, or a tensor where a number belongs."
            )

    def test_a_verifiable_reward_is_a_share(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """Scores of a reward that says it is `verifiable` lie between 0 and 1, where 1 means correct."""
        if not reward.verifiable:
            assert reward.verifiable is False, "expected the class variable `verifiable` to be True or False"
            return
        outside = [score for score in reward.score(samples, completions) if not 0 <= score <= 1]
        assert not outside, (
            f"expected scores from 0 to 1 of a verifiable reward, whose mean is shown as an accuracy; found {outside}"
        )

    # What a score depends on

    def test_the_same_batch_has_the_same_scores(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """Scoring the same completions again gives the same scores."""
        first, second = (list(reward.score(samples, completions)) for _ in range(2))
        assert first == second, (
            f"expected the same scores for the same completions; found {first}, then {second}. Usual cause: random "
            "numbers, dropout left on, or a state that scoring changes."
        )

    def test_the_order_does_not_matter(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """Completions in another order, with their samples, get the same scores in that order."""
        order = [*range(1, len(completions)), 0][::-1]
        straight = list(reward.score(samples, completions))
        turned = list(reward.score([samples[i] for i in order], [completions[i] for i in order]))
        self.check_close(turned, [straight[i] for i in order], "sorted by length and not put back in order")

    def test_a_score_does_not_depend_on_the_neighbours(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """A completion scored alone gets what it gets among others.

        RAFT scores in batches of any size, and a resumed run in others than the run it continues.
        """
        together = list(reward.score(samples, completions))
        alone = [reward.score([sample], [text])[0] for sample, text in zip(samples, completions, strict=True)]
        self.check_close(alone, together, "scores normalised within the batch, or padding that is not masked")

    def test_what_is_scored_is_left_alone(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """`score` changes neither the samples and their records nor the completions."""
        given = copy.deepcopy((list(samples), list(completions)))
        reward.score(samples, completions)
        assert (list(samples), list(completions)) == given, (
            "expected samples and completions to be as they were after scoring. Usual cause: fields added to or popped "
            "from sample.record; copy it first (dict(sample.record))."
        )

    def test_it_passes_the_checks_of_a_run(
        self, reward: Reward, samples: Sequence[Sample], completions: Sequence[str]
    ) -> None:
        """`score_completions`, through which every run scores, takes what the reward returns."""
        from lmflow.inference.rewards import score_completions

        try:
            score_completions(reward, samples, completions)
        except LmflowError as error:
            pytest.fail(
                f"expected a run to take the scores; it says: {error}. Where it misses a field of the record, supply "
                "samples that have it: the fixtures `samples` and `completions`.",
                pytrace=False,
            )

    def check_close(self, found: Sequence[float], expected: Sequence[float], cause: str) -> None:
        """Fail unless the scores are equal within the tolerance."""
        far = [(a, b) for a, b in zip(found, expected, strict=True) if not abs(a - b) <= self.tolerance]
        assert not far, f"expected the same score; found {far[0][0]!r} and {far[0][1]!r}. Usual cause: {cause}."


def question(number: int) -> Sample:
    """A question whose record says the answer, as most data does, so that rewards that compare have something to."""
    record = {"prompt": f"Question {number}: what is two and two?", "answer": "four"}
    return Sample((Message("user", record["prompt"]),), True, record, f"questions.jsonl:{number + 1}")


def is_finite(value: object) -> bool:
    """Whether `value` is a plain finite number, not a tensor, an array or a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
