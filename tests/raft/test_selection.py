"""Selection, prompt order and diversity against brute force."""

import itertools
import math
import random

import pytest

from lmflow_raft.selection import distinct_n, draw_prompts, keep_best_of_all, keep_best_of_each


def test_local_by_hand():
    assert keep_best_of_each([[0.1, 0.9, 0.3], [2.0, -1.0, 2.0], [-5.0]]) == [(0, 1), (1, 0), (2, 0)]


def test_top_by_hand():
    # six completions, a third of them is two: 2.0 and 0.9
    assert keep_best_of_all([[0.1, 0.9, 0.3], [2.0, -1.0, 0.5]], 1 / 3) == [(1, 0), (0, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_against_brute_force(seed: int):
    draw = random.Random(seed)
    rewards = [[draw.choice([0.0, 0.5, 1.0, draw.random()]) for _ in range(draw.randint(1, 6))] for _ in range(7)]
    for i, j in keep_best_of_each(rewards):
        assert rewards[i][j] == max(rewards[i])
        assert max(rewards[i]) not in rewards[i][:j]
    every = [(i, j) for i, row in enumerate(rewards) for j in range(len(row))]
    fraction = draw.random()
    kept = keep_best_of_all(rewards, fraction)
    assert len(kept) == len(set(kept)) == max(1, round(fraction * len(every)))
    worst_kept = min(rewards[i][j] for i, j in kept)
    assert all(rewards[i][j] <= worst_kept for i, j in every if (i, j) not in kept)


def test_top_keeps_at_least_one_and_at_most_all():
    rewards = [[0.0, 1.0], [2.0, 3.0]]
    assert keep_best_of_all(rewards, 0.001) == [(1, 1)]
    assert sorted(keep_best_of_all(rewards, 1.0)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_every_prompt_once_before_any_again():
    drawn = [draw_prompts(10, 4, iteration, seed=3) for iteration in range(1, 6)]
    flat = list(itertools.chain(*drawn))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_prompt_order_depends_on_iteration_and_seed_alone():
    assert draw_prompts(10, 4, 3, seed=0) == draw_prompts(10, 4, 3, seed=0)
    assert draw_prompts(10, 10, 1, seed=0) != draw_prompts(10, 10, 1, seed=1)
    assert sorted(draw_prompts(3, 8, 2, seed=0)) == [0, 1, 2]


def test_distinct_n_by_hand():
    # unigrams 1 2 1 2 3: 3 of 5; bigrams 12 21 | 23: 3 of 3
    assert distinct_n([[1, 2, 1], [2, 3]], 1) == pytest.approx(3 / 5)
    assert distinct_n([[1, 2, 1], [2, 3]], 2) == 1.0
    assert math.isnan(distinct_n([[1]], 2))
