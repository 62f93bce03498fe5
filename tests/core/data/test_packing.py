"""Which samples make a step, and how they are laid into rows and micro-batches."""

from __future__ import annotations

import random

import pytest

from lmflow.data.packing import group_rows, pack_rows, plan_epoch, split_micro


@pytest.mark.parametrize("seed", range(10))
def test_rows_hold_everything_once_and_no_more_than_fits(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 40))]
    rows = pack_rows(lengths, 30)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 30 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 30)  # best-fit never needs twice the best


def test_a_sequence_goes_into_the_fullest_row_with_room():
    assert pack_rows([6, 5, 4, 3], 10) == [[0, 2], [1, 3]]
    assert pack_rows([7, 6, 3, 4], 10) == [[0, 2], [1, 3]]  # the 4 fits into the second only, the 3 fills the first
    assert pack_rows([5, 7, 3], 10) == [[1, 2], [0]]  # first-fit would do the same; the fullest row is the first


@pytest.mark.parametrize("seed", range(10))
def test_batches_of_packed_rows_are_hardly_padded(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 100) for _ in range(50)]
    groups = group_rows(lengths, 4)
    assert sorted(i for group in groups for i in group) == list(range(50))
    assert max(len(group) for group in groups) <= 4
    for group in groups:
        space = len(group) * max(lengths[i] for i in group)
        assert sum(lengths[i] for i in group) >= 0.97 * space
    assert len(group_rows([30] * 8, 4)) == 2


def test_epochs_hold_every_sample_once_in_seeded_order():
    steps = list(plan_epoch(10, 4, seed=3, epoch=0))
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(i for step in steps for i in step) == list(range(10))
    assert steps == list(plan_epoch(10, 4, seed=3, epoch=0))
    assert steps != list(plan_epoch(10, 4, seed=3, epoch=1))
    assert steps != list(plan_epoch(10, 4, seed=4, epoch=0))


def test_micro_batches_are_alike_in_length():
    assert split_micro([9, 1, 8, 2], 2) == [[1, 3], [2, 0]]
    assert split_micro([], 2) == []


def test_long_samples_come_in_smaller_micro_batches():
    assert split_micro([9, 1, 8, 2, 50], 4, tokens=16) == [[1, 3], [2], [0], [4]]
    assert split_micro([4, 4, 4, 4, 4], 4, tokens=16) == [[0, 1, 2, 3], [4]]
