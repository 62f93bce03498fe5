"""Numbers beside sequences, as an objective reads them from a batch."""

from __future__ import annotations

import pytest
import torch

from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.training.loss import sequence_inputs, target_inputs


def sequence(length: int, first: float, **inputs: float) -> TokenSequence:
    values = torch.arange(length - 1) + first
    mask = [False] + [True] * (length - 1)
    return TokenSequence([5] * length, mask, f"s{first}", objective_inputs={"old": values, **inputs})


IDLE = TokenSequence([5, 5], [False, False], "idle", objective_inputs={"old": torch.ones(1), "advantage": 9.0})


@pytest.mark.parametrize(
    "batch",
    [
        collate([sequence(3, 10), IDLE, sequence(2, 20)], 0),
        collate_packed([[sequence(3, 10)], [IDLE, sequence(2, 20)]], 0),
    ],
)
def test_each_target_has_its_number_and_a_sequence_without_targets_none(batch):
    assert target_inputs(batch, "old").tolist() == [10, 11, 20]
    assert batch.num_targets == 3


def test_nothing_has_a_target():
    assert target_inputs(collate([IDLE], 0), "old").shape == (0,)


def test_too_few_numbers_are_an_error():
    short = TokenSequence([5] * 4, [True] * 4, objective_inputs={"old": torch.ones(2)})
    with pytest.raises(TrainingError, match=r"objective_inputs\['old'\]: 2 numbers for 3 targets"):
        target_inputs(collate([short], 0), "old")


def test_a_number_for_each_sequence():
    batch = collate([sequence(3, 1, advantage=0.5), sequence(3, 2)], 0)
    assert sequence_inputs(batch, "advantage", default=-1.0).tolist() == [0.5, -1.0]
    with pytest.raises(TrainingError, match=r"s2: its objective_inputs have no 'advantage'"):
        sequence_inputs(batch, "advantage")
