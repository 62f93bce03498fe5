"""Batches in which no sample sees another: padded rows, and rows of several samples."""

from __future__ import annotations

import pytest
import torch

from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence


def sequence(prompt: int, answer: int, name: str = "s") -> TokenSequence:
    return TokenSequence(list(range(prompt + answer)), [False] * prompt + [True] * answer, name)


@pytest.mark.gpu
def test_a_pinned_batch_is_the_same_batch():
    for batch in (collate([sequence(2, 3), sequence(1, 1)], 0), collate_packed([[sequence(2, 3), sequence(1, 1)]], 0)):
        pinned = batch.pinned()
        assert pinned.input_ids.is_pinned()
        assert torch.equal(pinned.to(torch.device("cuda")).target_positions.cpu(), batch.target_positions)


def test_padding_by_hand():
    batch = collate([sequence(1, 2), sequence(2, 3)], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 2, 9, 9], [0, 1, 2, 3, 4]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.loss_mask.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]
    assert (batch.num_targets, batch.tokens) == (5, 8)


def test_packing_by_hand():
    batch = collate_packed([[sequence(0, 2), sequence(1, 2)], [sequence(1, 1)]], pad_id=9)
    assert batch.input_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]
    assert batch.loss_mask.tolist() == [[False, True, False, True, True], [False, True, False, False, False]]
    assert batch.attention_mask is None
    assert (batch.num_targets, batch.tokens) == (4, 7)


def test_model_inputs_are_concatenated_in_row_order():
    with_pixels = [TokenSequence([1], [True], model_inputs={"pixels": torch.full((n, 2), float(n))}) for n in (1, 2)]
    batch = collate([with_pixels[0], TokenSequence([1], [True]), with_pixels[1]], 0)
    assert batch.model_inputs["pixels"][:, 0].tolist() == [1.0, 2.0, 2.0]
