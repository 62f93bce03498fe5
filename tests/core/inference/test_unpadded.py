"""Rows in groups, and rows without a cache: their order is kept whatever leaves and joins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from lmflow.data.sample import Prompt
from lmflow.inference.decoder import Decoder, RowDecoder
from lmflow.inference.unpadded import GroupedDecoder, UncachedDecoder

PROMPTS = [Prompt([5, 6, 7]), Prompt([40]), Prompt([8, 9, 10])]


@pytest.fixture
def ways(model: Any) -> dict[str, Callable[[], RowDecoder]]:
    plain = partial(Decoder, model.module)
    return {
        "equal": lambda: GroupedDecoder(plain),
        "alone": lambda: GroupedDecoder(plain, alone=True),
        "uncached": lambda: UncachedDecoder(model.module),
    }


def last(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("name", ["equal", "alone", "uncached"])
@torch.no_grad()
def test_rows_keep_their_order(name: str, ways: dict[str, Callable[[], RowDecoder]], model: Any):
    decoder = ways[name]()
    rows = [[5, 6, 7], [5, 6, 7], [40], [8, 9, 10]]
    logits = decoder.prefill(PROMPTS, [2, 1, 1])

    def check(logits: torch.Tensor) -> None:
        torch.testing.assert_close(logits, torch.stack([last(model, row) for row in rows]), atol=2e-4, rtol=1e-4)

    check(logits)
    for tokens, kept in (([11, 12, 13, 14], [3, 1, 2]), ([15, 16, 17], [0, 2])):
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        check(decoder.step(torch.tensor(tokens)))
        decoder.keep(torch.tensor(kept))
        rows = [rows[index] for index in kept]
    joining = ways[name]()
    joining.prefill(PROMPTS[:1])
    decoder.concat(joining)
    rows.append([5, 6, 7])
    assert decoder.flexible
    assert decoder.width == max(map(len, rows))
    rows = [[*row, 20 + index] for index, row in enumerate(rows)]
    check(decoder.step(torch.tensor([20, 21, 22])))


def test_groups_are_those_of_equal_length(ways: dict[str, Callable[[], RowDecoder]], model: Any):
    shapes: list[list[int]] = []
    model.module.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(list(inputs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        ways["equal"]().prefill(PROMPTS, [2, 1, 1])
        assert shapes == [[2, 3], [1, 1]]
        shapes.clear()
        ways["alone"]().prefill(PROMPTS, [2, 1, 1])
        assert shapes == [[1, 3], [1, 3], [1, 1], [1, 3]]


def test_passes_without_a_cache_are_bounded(
    ways: dict[str, Callable[[], RowDecoder]], model: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lmflow.inference.unpadded.PASS_TOKENS", 6)
    with torch.no_grad():
        logits = ways["uncached"]().prefill(PROMPTS)
        expected = torch.stack([last(model, list(prompt.ids)) for prompt in PROMPTS])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
