"""Which prompts are decoded together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


def longest_first(lengths: Sequence[int]) -> deque[int]:
    """Indices by falling length: neighbours are alike, so little is padded, and what needs most memory comes first."""
    return deque(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)))


def admit(
    queue: deque[int],
    lengths: Sequence[int],
    token_budgets: Sequence[int],
    n: int,
    budget: int,
    running: tuple[int, int, int],
) -> list[int]:
    """Take from the front of `queue` the prompts that can be decoded beside what is running, n rows each.

    `running` is the number of rows being decoded, the tokens in the cache of each, and the most that are still to come
    to one. A batch takes rows * (longest now + most to come) tokens of cache, and stays within `budget` unless a
    single prompt is alone in it. None is taken while those that fit are few beside the rows running, for reading
    prompts costs a forward pass.
    """
    rows, width, token_budget = running
    fitting = 0
    for index in queue:
        width, token_budget = max(width, lengths[index]), max(token_budget, token_budgets[index])
        if rows + fitting > 0 and (rows + fitting + n) * (width + token_budget) > budget:
            break
        fitting += n
    if fitting < len(queue) * n and fitting * 4 < rows:
        return []
    return [queue.popleft() for _ in range(fitting // n)]
