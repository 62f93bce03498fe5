"""The items of a step as the batches of its forward passes, each within a bound of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.packing import MOST_PADDING, group_rows, pack_rows, split_micro
from lmflow.data.sample import Item, TokenSequence
from lmflow.recipe.sections.training import TrainingOptions

MICRO_BATCH_SIZE, MICRO_BATCH_TOKENS = 8, 4096
"""Samples and padded tokens per forward pass where `micro_batch_size` does not say; memory grows with the latter."""


def sequences_of(item: Item) -> tuple[TokenSequence, ...]:
    """The sequences of an item."""
    return (item,) if isinstance(item, TokenSequence) else item


def flat(groups: Iterable[tuple[TokenSequence, ...]]) -> list[TokenSequence]:
    """The sequences of several groups, one group after the other."""
    return [sequence for group in groups for sequence in group]


def micro_batches(
    groups: Sequence[tuple[TokenSequence, ...]],
    options: TrainingOptions,
    packing: bool,
    max_length: int | None,
    pad_id: int,
    padding: float = MOST_PADDING,
) -> list[Batch]:
    """Groups as batches of at most `micro_batch_size` rows, which a group of several sequences stays together in.

    Of packed ones no batch has a larger share of `padding`.
    """
    if packing:
        lengths = [sum(map(len, group)) for group in groups]
        rows = pack_rows(lengths, max_length or max(lengths))
        tokens = None if options.micro_batch_size else MICRO_BATCH_TOKENS
        batches = group_rows([sum(lengths[i] for i in row) for row in rows], rows_of(options), tokens, padding)
        return [collate_packed([flat(groups[i] for i in rows[r]) for r in batch], pad_id) for batch in batches]
    chosen = padded_batches([tuple(map(len, group)) for group in groups], options)
    return [collate(flat(groups[i] for i in batch), pad_id) for batch in chosen]


def padded_batches(groups: Sequence[tuple[int, ...]], options: TrainingOptions) -> list[list[int]]:
    """The groups of each micro-batch where rows are padded, of the lengths of their sequences."""
    most = max(map(len, groups))
    tokens = None if options.micro_batch_size else MICRO_BATCH_TOKENS // most
    return split_micro([max(group) for group in groups], max(1, rows_of(options) // most), tokens)


def rows_of(options: TrainingOptions) -> int:
    """The most rows of a micro-batch."""
    return options.micro_batch_size or min(options.batch_size, MICRO_BATCH_SIZE)


def bounded_batches(items: Sequence[Item], pad_id: int, size: int | None = None) -> list[tuple[list[int], Batch]]:
    """Items in batches for a pass without gradient, each with the indices of its items: shortest first, unpacked.

    A batch holds at most `size` items (8 if None) and MICRO_BATCH_TOKENS padded tokens, unless a single item has more.
    """
    groups = [sequences_of(item) for item in items]
    most = max(map(len, groups), default=1)
    longest = [max(map(len, group)) for group in groups]
    chosen = split_micro(longest, size or MICRO_BATCH_SIZE, max(1, MICRO_BATCH_TOKENS // most))
    return [(batch, collate(flat(groups[i] for i in batch), pad_id)) for batch in chosen]
