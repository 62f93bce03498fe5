"""Advantages within groups: by hand, against one another, and where a group says nothing."""

from __future__ import annotations

import math

import pytest
import torch

from lmflow.training.advantages import centered_advantages, leave_one_out_advantages, normalized_advantages

ALL = [centered_advantages, leave_one_out_advantages, normalized_advantages]


def test_by_hand():
    # mean 2; squares of the differences 1 + 0 + 1, by 3 - 1: a standard deviation of 1
    # the others' means: (2 + 3) / 2, (1 + 3) / 2, (1 + 2) / 2
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
    assert centered_advantages(rewards).tolist() == [[-1, 0, 1], [-1, -1, 2]]
    assert leave_one_out_advantages(rewards)[0].tolist() == pytest.approx([1 - 2.5, 2 - 2, 3 - 1.5])
    # second group: mean 1, squares 1 + 1 + 4 by 2: a standard deviation of sqrt(3)
    assert normalized_advantages(rewards)[0].tolist() == [-1, 0, 1]
    assert normalized_advantages(rewards)[1].tolist() == pytest.approx([-1 / math.sqrt(3)] * 2 + [2 / math.sqrt(3)])


def test_against_a_loop():
    rewards = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for row, centered, single, normalized in zip(rewards, *(each(rewards) for each in ALL), strict=True):
        for index, reward in enumerate(row):
            others = [other for at, other in enumerate(row) if at != index]
            assert float(single[index]) == pytest.approx(float(reward - sum(others) / len(others)), abs=1e-5)
            assert float(normalized[index]) == pytest.approx(float(centered[index] / row.std()), rel=1e-4)


@pytest.mark.parametrize("advantages", ALL)
def test_a_group_of_equal_rewards_gives_zeros(advantages):
    """A third is no number of float32's: the mean of three of them need not be one, nor their deviation 0."""
    rewards = torch.tensor([[1 / 3] * 7, [0.1] * 7, [0.0] * 7, [-1e30] * 7])
    assert advantages(rewards).eq(0).all()
    mixed = torch.cat([rewards[:1], torch.arange(7.0)[None]])
    assert advantages(mixed)[0].eq(0).all()
    assert advantages(mixed)[1].abs().sum() > 0


@pytest.mark.parametrize("advantages", ALL)
def test_they_sum_to_nothing_and_do_not_see_a_shift(advantages):
    rewards = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(advantages(rewards).sum(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(advantages(rewards + 5), advantages(rewards))


def test_only_the_normalized_ones_do_not_see_the_scale():
    rewards = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalized_advantages(3 * rewards), normalized_advantages(rewards))
    torch.testing.assert_close(leave_one_out_advantages(3 * rewards), 3 * leave_one_out_advantages(rewards))


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_what_is_no_group_is_refused(advantages, shape):
    with pytest.raises(ValueError, match="at least 2 completions of each prompt"):
        advantages(torch.zeros(shape))
