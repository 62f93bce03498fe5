"""Which requests are decoded together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """What decoding a request takes, or what is decoded takes already."""

    rows: int
    """Completions that grow at once."""
    width: int
    """Tokens in the cache of each: of a request, those of its prompt."""
    to_come: int
    """Most tokens that are still to come to one."""


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length: neighbours are alike, so little is padded, and what needs most memory comes first."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def admit(waiting: Iterable[Demand], budget: int, running: Demand | None) -> int:
    """How many of those that wait, from the first on, can be decoded beside what is running.

    A batch takes rows * (widest now + most to come) tokens of cache, and stays within `budget` unless a single request
    is alone in it. None is taken while those that fit are few beside the rows running and others wait behind them,
    for reading prompts costs a forward pass.
    """
    already = running.rows if running is not None else 0
    total, fitting = running or Demand(0, 0, 0), 0
    for each in waiting:
        larger = Demand(total.rows + each.rows, max(total.width, each.width), max(total.to_come, each.to_come))
        if total.rows and larger.rows * (larger.width + larger.to_come) > budget:
            return 0 if (total.rows - already) * 4 < already else fitting
        total, fitting = larger, fitting + 1
    return fitting
