"""What comes together: the steps of an epoch, micro-batches of a step, and packed rows."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

MOST_PADDING = 0.03
"""Largest share of padding in a batch of packed rows."""


def pack_rows(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Indices of the sequences of each row, longest first into the fullest row with room (best-fit decreasing)."""
    rows: list[list[int]] = []
    free_space: list[tuple[int, int]] = []  # what is free in each row, and the row; ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(free_space, (lengths[index], 0))
        if place == len(free_space):
            rows.append([])
            free, row = max_length, len(rows) - 1
        else:
            free, row = free_space.pop(place)
        rows[row].append(index)
        insort(free_space, (free - lengths[index], row))
    return rows


def group_rows(
    lengths: Sequence[int], size: int, tokens: int | None = None, padding: float = MOST_PADDING
) -> list[list[int]]:
    """Rows in micro-batches of at most `size`, fullest first, so that no batch has a larger share of padding.

    With `tokens` a micro-batch also holds no more than that, padding included, unless a single row does.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        together = [*groups[-1], row] if groups else []
        space = len(together) * lengths[together[0]] if groups else 0
        fits = groups and len(together) <= size and (tokens is None or space <= tokens)
        if fits and space - sum(lengths[i] for i in together) <= padding * space:
            groups[-1] = together
        else:
            groups.append([row])
    return groups


def plan_epoch(samples: int, batch_size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Sample indices of each optimizer step of an epoch, shuffled; the last step may have fewer, none is dropped.

    A function of its arguments alone, so a resumed run skips what it has done without reading it. Takes eight bytes a
    sample, for data sets larger than memory.
    """
    order = array("q", range(samples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    for start in range(0, samples, batch_size):
        yield order[start : start + batch_size].tolist()


def split_micro(lengths: Sequence[int], size: int, tokens: int | None = None) -> list[list[int]]:
    """A step's samples in micro-batches of at most `size`, alike in length so that little is padded.

    With `tokens` a micro-batch also holds no more than that, padding included, unless a single sample does.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = len(batches[-1]) + 1 if batches else size + 1
        if rows > size or (tokens is not None and rows * lengths[index] > tokens):
            batches.append([])
        batches[-1].append(index)
    return batches
