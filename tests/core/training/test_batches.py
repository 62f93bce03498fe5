"""The items of a step in batches: what belongs together stays together, and every batch is bounded."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lmflow.data.sample import TokenSequence
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training import batches
from lmflow.training.batches import bounded_batches, flat, micro_batches, sequences_of


def of_length(length: int, name: str = "") -> TokenSequence:
    return TokenSequence([5] * length, [True] * length, name or f"{length}")


def groups(*lengths: int) -> list[tuple[TokenSequence, ...]]:
    return [(of_length(length, str(i)),) for i, length in enumerate(lengths)]


def sources(found: list[Any]) -> list[list[str]]:
    return [[each.source for each in batch.sequences] for batch in found]


def options(**values: Any) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": 16, **values})


def test_an_item_is_a_sequence_or_several():
    one, two = of_length(3), of_length(4)
    assert sequences_of(one) == (one,)
    assert sequences_of((one, two)) == (one, two)
    assert flat([(one, two), (two,)]) == [one, two, two]


@pytest.mark.parametrize(("size", "expected"), [(1, 6), (2, 3), (4, 2), (6, 1), (99, 1)])
def test_micro_batch_size_bounds_the_rows(size: int, expected: int):
    found = micro_batches(groups(4, 9, 5, 7, 6, 8), options(micro_batch_size=size), False, None, 0)
    assert len(found) == expected
    assert all(batch.input_ids.shape[0] <= size for batch in found)
    assert sorted(name for names in sources(found) for name in names) == list("012345")


def test_without_a_size_at_most_eight_rows_and_so_many_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 64)
    draw = random.Random(0)
    found = micro_batches(groups(*(draw.randint(2, 32) for _ in range(30))), options(batch_size=30), False, None, 0)
    shapes = [tuple(batch.input_ids.shape) for batch in found]
    assert all(rows <= 8 and rows * columns <= 64 for rows, columns in shapes)
    assert sum(rows for rows, _ in shapes) == 30


def test_a_size_that_was_asked_for_is_not_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 8)
    [batch] = micro_batches(groups(20, 20, 20), options(micro_batch_size=3), False, None, 0)
    assert batch.input_ids.shape == (3, 20)


def test_a_small_step_is_one_batch():
    [batch] = micro_batches(groups(4, 4), options(batch_size=2), False, None, 0)
    assert batch.input_ids.shape == (2, 4)


def test_groups_stay_together_and_count_all_of_their_rows():
    pairs = [(of_length(5, f"{i}+"), of_length(7, f"{i}-")) for i in range(5)]
    for size in (1, 2, 4, 5):
        found = sources(micro_batches(pairs, options(micro_batch_size=size), False, None, 0))
        assert all(len(names) <= max(2, size) for names in found), size
        assert all(b == a.replace("+", "-") for names in found for a, b in zip(names[::2], names[1::2], strict=True))


def test_packed_rows_are_no_longer_than_they_may_be():
    found = micro_batches(groups(10, 6, 4, 9, 1, 10), options(micro_batch_size=2), True, 10, 0)
    assert all(batch.input_ids.shape[1] <= 10 and batch.input_ids.shape[0] <= 2 for batch in found)
    assert sum(batch.tokens for batch in found) == 40
    assert sum(batch.input_ids.numel() for batch in found) == 40, "four rows of ten are full"
    assert all(batch.attention_mask is None for batch in found)


def test_packed_without_a_limit_the_longest_sets_it():
    found = micro_batches(groups(12, 6, 6), options(micro_batch_size=8), True, None, 0)
    assert [tuple(batch.input_ids.shape) for batch in found] == [(2, 12)]


def test_packed_rows_have_the_bound_of_padded_ones(monkeypatch: pytest.MonkeyPatch):
    """Without a size, so many tokens; with one, so many rows."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 20)
    for size, shapes in ((None, [(2, 10), (2, 10)]), (4, [(4, 10)])):
        found = micro_batches(groups(*[5] * 8), options(micro_batch_size=size), True, 10, 0)
        assert [tuple(batch.input_ids.shape) for batch in found] == shapes


def test_packed_batches_may_be_padded_as_much_as_is_said():
    for padding, shapes in ((0.09, [(1, 10), (1, 8)]), (0.1, [(2, 10)])):
        found = micro_batches(groups(10, 8), options(micro_batch_size=4), True, 10, 0, padding)
        assert [tuple(batch.input_ids.shape) for batch in found] == shapes, "2 of 20 positions would be padding"


def test_bounded_batches_know_their_items():
    items = [of_length(9, "a"), (of_length(3, "b"), of_length(4, "c")), of_length(2, "d")]
    found = bounded_batches(items, 0, 1)
    assert sorted(i for chosen, _ in found for i in chosen) == [0, 1, 2]
    for chosen, batch in found:
        assert [each.source for each in batch.sequences] == [s.source for i in chosen for s in sequences_of(items[i])]


def test_bounded_batches_pad_little():
    """Items of like length share a batch, so that the fill of short ones does not grow with the longest."""
    found = bounded_batches([of_length(n) for n in (30, 2, 31, 3, 32, 4)], 0, 3)
    assert sorted(batch.input_ids.shape[1] for _, batch in found) == [4, 32]


def test_no_items_are_no_batches():
    assert bounded_batches([], 0) == []
