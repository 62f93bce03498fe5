"""Completions as training sequences, and their rewards by one process for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from lmflow.components import Reward
from lmflow.data.sample import Message, Prompt, Sample
from lmflow.distributed.processes import Processes
from lmflow.errors import RewardError
from lmflow.inference.rewards import score_groups, score_on_rank0
from lmflow.inference.rollouts import completion_sequence
from lmflow.inference.types import Completion
from lmflow.testing.contexts import quiet_log


class Longest(Reward):
    """The length of a completion, next to the number of its prompt."""

    name = "longest"

    def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
        assert len(samples) == len(completions)
        return [10 * float(s.prompt_text) + len(text) for s, text in zip(samples, completions, strict=True)]


@dataclass(frozen=True)
class OtherProcess(Processes):
    """A process that is not rank 0, and is told what that one made."""

    told: Any = None

    def on_rank0(self, make: Callable[[], Any]) -> Any:
        return self.told


def ask(number: int) -> Sample:
    return Sample((Message("user", str(number)),))


def completion(text: str) -> Completion:
    return Completion(tuple(range(len(text))), text, (-1.0,) * len(text), "eos")


def test_groups_are_scored_in_their_shape():
    log = quiet_log()
    groups = [[completion("a"), completion("bbb")], [], [completion("cc")]]
    assert score_groups(log, Longest(), [ask(1), ask(2), ask(3)], groups) == [[11, 13], [], [32]]
    assert set(log.seconds) == {"scoring"}
    with pytest.raises(ValueError, match="argument 2"):
        score_groups(log, Longest(), [ask(1)], groups)


def test_another_process_is_told_the_scores_and_asks_nobody():
    log = quiet_log()
    log.processes = OtherProcess(rank=1, size=2, told=[5.0])
    assert score_on_rank0(log, Longest(), [], ["never scored"]) == [5.0]


def test_a_score_that_is_no_number_is_refused():
    class Bad(Longest):
        def score(self, samples: Sequence[Sample], completions: Sequence[str]) -> list[float]:
            return [float("nan")]

    with pytest.raises(RewardError, match="nan, not a finite number"):
        score_on_rank0(quiet_log(), Bad(), [ask(1)], ["x"])


def test_a_sequence_is_what_was_sampled_with_its_end():
    prompt = Prompt([3, 4], {"pixels": 1})
    made = completion_sequence(prompt, Completion((7, 8, 1), "ab", (0, 0, 0), "eos"), "p:1", {"advantage": 0.5})
    assert (made.ids, made.loss_mask) == ([3, 4, 7, 8, 1], [False, False, True, True, True])
    assert (made.source, made.model_inputs, made.objective_inputs) == ("p:1", {"pixels": 1}, {"advantage": 0.5})
