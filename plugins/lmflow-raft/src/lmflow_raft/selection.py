"""Which of the drawn completions RAFT trains on: pure functions of rewards."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence


def keep_best_of_each(rewards: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """`local`: the (prompt, sample) indices of every prompt's best completion; the first drawn wins a tie.

    This is Algorithm 1 of arXiv 2304.06767. `rewards[i][j]` belongs to sample j of prompt i.
    """
    return [(i, max(range(len(row)), key=row.__getitem__)) for i, row in enumerate(rewards)]


def keep_best_of_all(rewards: Sequence[Sequence[float]], fraction: float) -> list[tuple[int, int]]:
    """`top`: the (prompt, sample) indices of the best `fraction` of all completions, at least one, best first.

    Ranking over the whole batch lets easy prompts contribute several completions and hard ones none.
    """
    every = [(i, j) for i, row in enumerate(rewards) for j in range(len(row))]
    ranked = sorted(every, key=lambda at: -rewards[at[0]][at[1]])
    return ranked[: max(1, round(fraction * len(every)))]


def draw_prompts(count: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Prompt indices of 1-based `iteration`: seeded passes over all prompts, each used once before any again.

    A function of its arguments alone, so a resumed run draws what the uninterrupted one would have drawn.
    """
    size = min(per_iteration, count)
    chosen = []
    for position in range((iteration - 1) * size, iteration * size):
        lap, place = divmod(position, count)
        order = list(range(count))
        random.Random(f"{seed}/{lap}").shuffle(order)
        chosen.append(order[place])
    return chosen


def distinct_n(sequences: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams of tokens over all n-grams (Li et al., 2016, arXiv 1510.03055); nan without any."""
    grams = [tuple(ids[i : i + n]) for ids in sequences for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
