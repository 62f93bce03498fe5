"""Which prompts are decoded together."""

from __future__ import annotations

from collections.abc import Sequence


def batches_by_length(lengths: Sequence[int], n: int, new_tokens: int, budget: int) -> list[list[int]]:
    """Prompt indices of each batch: alike in length, so that little is padded, within `budget` tokens of cache.

    A batch of P prompts takes P * n * (its longest prompt + new_tokens); one prompt always fits.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches:
            rows = (len(batches[-1]) + 1) * n
            if rows * (lengths[batches[-1][0]] + new_tokens) <= budget:
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches
