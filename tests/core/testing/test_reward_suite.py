"""The suite of rewards fails rewards that are broken in one respect, and says in which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lmflow.components import Reward
from lmflow.data.sample import Sample
from lmflow.testing import RewardSuite


class Words(Reward):
    """The number of words: a good reward."""

    name = "words"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> Sequence[float]:
        return [float(len(text.split())) for text in completions]


class SkipsEmpty(Words):
    def score(self, samples, completions):
        return super().score(samples, [text for text in completions if text])


class DividesByLength(Words):
    def score(self, samples, completions):
        return [len(set(words)) / len(words) if (words := text.split()) else float("nan") for text in completions]


class GivesTensors(Words):
    def score(self, samples, completions):
        import torch

        return [torch.tensor(score) for score in super().score(samples, completions)]


class ClaimsToVerify(Words):
    verifiable = True


COUNT = itertools.count()


class Drifts(Words):
    def score(self, samples, completions):
        return [score + next(COUNT) for score in super().score(samples, completions)]


class SortsByLength(Words):
    def score(self, samples, completions):
        return sorted(super().score(samples, completions))


class RanksWithinTheBatch(Words):
    def score(self, samples, completions):
        scores = super().score(samples, completions)
        return [score - sum(scores) / len(scores) for score in scores]


class PopsTheAnswer(Words):
    def score(self, samples, completions):
        for sample in samples:
            sample.record.pop("answer", None)
        return super().score(samples, completions)


class Raises(Words):
    def score(self, samples, completions):
        if len(completions) > 1:
            return [sample.record["absent"] for sample in samples]
        return super().score(samples, completions)


def test_a_good_reward_passes_everything(examine: Callable[..., dict[str, Any]]):
    assert {report.outcome for report in examine(RewardSuite, reward=Words()).values()} == {"passed"}


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (SkipsEmpty, "test_one_score_per_completion", "expected 6 scores for 6 completions; found 5"),
        (DividesByLength, "test_scores_are_finite_numbers", "expected a finite number for ''; found nan"),
        (GivesTensors, "test_scores_are_finite_numbers", "found tensor"),
        (ClaimsToVerify, "test_a_verifiable_reward_is_a_share", "expected scores from 0 to 1"),
        (Drifts, "test_the_same_batch_has_the_same_scores", "expected the same scores"),
        (SortsByLength, "test_the_order_does_not_matter", "expected the same score"),
        (RanksWithinTheBatch, "test_a_score_does_not_depend_on_the_neighbours", "normalised within the batch"),
        (PopsTheAnswer, "test_what_is_scored_is_left_alone", "expected samples and completions to be as they were"),
        (Raises, "test_it_passes_the_checks_of_a_run", "KeyError"),
    ],
)
def test_a_broken_reward_fails_its_check(
    broken: type[Reward], check: str, said: str, examine: Callable[..., dict[str, Any]]
):
    report = examine(RewardSuite, reward=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_a_suite_without_a_reward_says_what_to_write(examine: Callable[..., dict[str, Any]]):
    reports = examine(RewardSuite)
    assert {report.outcome for report in reports.values()} == {"failed"}
    assert all("write a fixture `reward`" in report.message for report in reports.values())
