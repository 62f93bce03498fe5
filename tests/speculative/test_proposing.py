"""Prompt lookup, and how many tokens are worth proposing."""

from __future__ import annotations

import random

import pytest

from lmflow_speculative.lengths import MEMORY, PRIOR, WEIGHT, AdaptedLength, FixedLength
from lmflow_speculative.proposing import NgramIndex
from lmflow_speculative.statistics import Statistics


def test_lookup_takes_the_longest_run_and_its_latest_place():
    index = NgramIndex(3)
    #          0  1  2  3  4  5  6  7  8
    history = [1, 2, 3, 9, 2, 3, 8, 2, 3]
    assert index.following(history, 2) == [8, 2]  # (2, 3) stood last at 4, followed by 8, 2
    history += [9]
    assert index.following(history, 5) == [2, 3, 8, 2, 3]  # (2, 3, 9) stood at 1
    assert index.following([*history, 77], 5) == []


def by_search(history: list[int], longest: int, limit: int) -> list[int]:
    for size in range(min(longest, len(history) - 1), 0, -1):
        for end in range(len(history) - 1, size - 1, -1):
            if history[end - size : end] == history[-size:]:
                return history[end : end + limit]
    return []


def test_lookup_equals_searching_the_whole_history():
    order = random.Random(0)
    index, history = NgramIndex(3), [1]
    for _ in range(300):
        history += [order.randrange(5) for _ in range(order.randint(1, 4))]
        assert index.following(history, 4) == by_search(history, 3, 4)


def test_the_adapted_length_is_the_best_by_enumeration():
    for cost in (0.05, 0.15, 0.4, 0.9):
        length = AdaptedLength(cost)
        kept: list[float] = []
        while length.goes_on(kept) and len(kept) < 100:
            kept.append(length.rate ** (len(kept) + 1))
        gains = [(1 + sum(length.rate**i for i in range(1, k + 1))) / (1 + k * cost) for k in range(1, 101)]
        assert len(kept) == 1 + gains.index(max(gains))


def test_adaptation_learns_the_share_kept():
    length = AdaptedLength(0.1)
    assert length.rate == pytest.approx(PRIOR)
    assert length.chance(0.3) == pytest.approx(0.3)  # taken at its word at first
    length.learn([0.9, 0.5, 0.5, 0.5], 1)  # the first kept, the second refused: two judged
    judged, refused = WEIGHT * MEMORY + 2, (1 - PRIOR) * WEIGHT * MEMORY + 1
    feared = (1 - PRIOR) * WEIGHT * MEMORY + 0.1 + 0.5
    assert length.rate == pytest.approx(1 - refused / judged)
    assert length.chance(0.8) == pytest.approx(1 - 0.2 * refused / feared)
    before = length.rate
    length.learn([], 0)
    assert length.rate == before
    assert FixedLength().goes_on([0.0] * 50)


def test_doubt_is_scaled_to_what_is_refused():
    """A proposer that is too modest is found to be right, one that is too sure to be wrong."""
    modest, sure = AdaptedLength(0.1), AdaptedLength(0.1)
    for _ in range(60):
        modest.learn([0.2, 0.2], 2)
        sure.learn([0.95], 0)
    assert modest.chance(0.2) > 0.95
    assert sure.chance(0.95) < 0.05


def test_figures_worked_by_hand():
    statistics = Statistics()
    statistics.count_block(0, 0, 1)
    statistics.count_block(3, 3, 4)
    statistics.count_block(3, 1, 2)
    assert statistics.proposed == [2, 2, 2]
    assert statistics.accepted == [2, 1, 1]
    assert statistics.acceptance == [1, 0.5, 0.5]
    assert statistics.acceptance_rate == pytest.approx(4 / 6)
    assert statistics.tokens_per_pass == pytest.approx(7 / 3)
    assert Statistics().describe() == "speculation: nothing sampled"
    assert "by place: 100%, 50%, 50%" in statistics.describe()
