"""Rows read in ragged blocks, cut, dropped and joined give the logits of reading each row whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow_speculative.blocks import BlockDecoder
from lmflow_speculative.statistics import Passes

ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": 8}),
]


def whole(model: Any, ids: list[int]) -> torch.Tensor:
    return model.module(torch.tensor([ids])).logits[0, -1]


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_any_course_of_blocks_equals_reading_whole(make_model, architecture, options):
    model = make_model(architecture, **options)
    order = random.Random(3)

    def some(count: int) -> list[int]:
        return [order.randrange(3, 250) for _ in range(count)]

    def begin(lengths: list[int], n: int) -> tuple[BlockDecoder, list[list[int]]]:
        prompts = [some(length) for length in lengths]
        decoder = BlockDecoder(model.module, Passes())
        logits = decoder.prefill([Prompt(ids) for ids in prompts], [n] * len(prompts))
        rows = [list(ids) for ids in prompts for _ in range(n)]
        for row, ids in zip(logits, rows):
            torch.testing.assert_close(row, whole(model, ids), atol=2e-3, rtol=1e-3)
        return decoder, rows

    decoder, rows = begin([5, 12, 3], 2)
    for turn in range(24):
        blocks = [some(order.randint(0, 4)) for _ in rows]
        if any(blocks):
            logits = decoder.read(blocks)
            for row, block, seen in zip(rows, blocks, logits):
                row += block
                if block:
                    torch.testing.assert_close(seen[len(block) - 1], whole(model, row), atol=2e-3, rtol=1e-3)
        rows = [row[: len(row) - order.randint(0, min(3, len(row) - 1))] for row in rows]
        decoder.crop([len(row) for row in rows])
        assert decoder.lengths == [len(row) for row in rows]
        if turn % 8 == 3:
            staying = sorted(order.sample(range(len(rows)), len(rows) - 2))
            decoder.keep(staying)
            rows = [rows[row] for row in staying]
        if turn % 8 == 6:
            entering, more = begin([order.randint(2, 20), 7], 1)
            decoder.concat(entering)
            rows += more


@torch.no_grad()
def test_a_single_row_has_no_holes_and_no_mask(make_model):
    model = make_model()
    decoder = BlockDecoder(model.module, Passes())
    decoder.prefill([Prompt([5, 6, 7])])
    for _ in range(20):
        decoder.read([[8, 9, 10]])
        decoder.crop([decoder.lengths[0] - 2])
    assert decoder.width == decoder.lengths[0] == 23
    assert decoder._real is None


@torch.no_grad()
def test_holes_never_take_more_than_their_share(make_model):
    model = make_model()
    decoder = BlockDecoder(model.module, Passes())
    decoder.prefill([Prompt([5] * 6)], [2])
    for turn in range(40):
        decoder.read([[8, 9, 10], [8, 9, 10]])
        lengths = list(decoder.lengths)
        lengths[turn % 2] -= 2
        decoder.crop(lengths)
        assert decoder.width * 0.75 <= max(decoder.lengths)


def test_a_model_with_recurrent_layers_is_refused(make_model):
    from transformers import MambaConfig, MambaForCausalLM

    module = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(LmflowError, match="of type mamba"):
        BlockDecoder(module, Passes())
