"""What a run measures before and after."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lmflow.components import Reward
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.inference.types import Sampling
from lmflow.recipe.sections.data import DataOptions
from lmflow.run.before_after import answer, compare, generic_sequences
from lmflow.testing.contexts import align_context, quiet_log

SAMPLES = [Sample((Message("user", f"question {i}"), Message("assistant", f"answer {i}"))) for i in range(3)]
GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


class Lengths(Reward):
    """1 for the first, then less."""

    name = "lengths"

    def score(self, samples, completions):
        return [1.0, 0.5, 0.0]


@pytest.fixture
def ask(tiny_model):
    trainer = SimpleNamespace(autocast=nullcontext, model=tiny_model, log=quiet_log())
    return lambda reward: answer(align_context(trainer, Dataset([], [], DataOptions()), reward=reward), SAMPLES, GREEDY)


def test_mean_reward_and_accuracy(ask):
    answers = ask(Lengths())
    assert answers.mean_reward == pytest.approx(0.5)
    assert answers.accuracy == pytest.approx(1 / 3)


def test_without_a_reward_there_are_answers_only(ask):
    answers = ask(None)
    assert answers.mean_reward is None
    assert answers.accuracy is None
    assert len(answers.completions) == 3


def test_rows_put_both_answers_and_the_expected_one_side_by_side(ask):
    before, after = ask(Lengths()), ask(Lengths())
    rows = compare(before, after)
    assert [row["prompt"] for row in rows] == ["question 0", "question 1", "question 2"]
    assert [row["expected"] for row in rows] == ["answer 0", "answer 1", "answer 2"]
    assert all(row["before"] == row["after"] for row in rows)
    assert rows[0]["reward_before"] == rows[0]["reward_after"] == 1.0


def test_generic_text_fits_the_model_and_is_the_same_each_time(tiny_model):
    first, second = generic_sequences(tiny_model), generic_sequences(tiny_model)
    assert [each.ids for each in first] == [each.ids for each in second]
    assert all(len(each) <= 256 for each in first)
    assert sum(len(each) for each in first) > 1000
