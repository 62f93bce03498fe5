"""Losses of tokens: every token but the first once, equal to one forward pass per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmflow.data.sample import TokenSequence
from lmflow.evaluators.scoring import Window, token_losses, windows_of
from lmflow.run.log import RunLog


def test_windows_by_hand() -> None:
    # 10 tokens, windows of 4 without overlap: tokens 1-4 from 0-3, 5-8 from 4-7, 9 from 8
    assert list(windows_of(0, 10, 4, 4)) == [Window(0, 0, 4, 1), Window(0, 4, 8, 5), Window(0, 8, 9, 9)]
    # half overlapping: 1-4, then 5-6 from 2-5, 7-8 from 4-7, 9 from 6-8
    assert list(windows_of(0, 10, 4, 2)) == [
        Window(0, 0, 4, 1),
        Window(0, 2, 6, 5),
        Window(0, 4, 8, 7),
        Window(0, 6, 9, 9),
    ]
    assert list(windows_of(0, 1, 4, 4)) == []
    assert list(windows_of(0, 0, 4, 4)) == []


@pytest.mark.parametrize("window", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("length", [2, 3, 9, 16, 17, 41])
def test_windows_predict_every_token_but_the_first_once(window: int, length: int) -> None:
    for stride in range(1, window + 1):
        windows = list(windows_of(0, length, window, stride))
        predicted = [token for each in windows for token in range(each.first, each.end + 1)]
        assert predicted == list(range(1, length))
        assert all(len(each) <= window and each.begin < each.first for each in windows)
        for each in windows[1:]:
            assert each.first - each.begin >= min(window - stride + 1, each.first)


def brute_force(model: Any, ids: list[int], window: int, stride: int) -> list[float]:
    """One forward pass per token, over nothing but what its window holds before it."""
    losses, first, begin = [], 1, 0
    for token in range(1, len(ids)):
        while token > begin + window:
            begin += stride
        first = begin
        with torch.no_grad():
            logits = model.module(torch.tensor([ids[first:token]])).logits[0, -1]
        losses.append(-float(logits.float().log_softmax(-1)[ids[token]]))
    return losses


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (7, 5), (64, 64), (1, 1)])
def test_losses_equal_brute_force(tiny_model: Any, log: RunLog, window: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (1, 2, 5, 23, 30, 9)]
    sequences = [TokenSequence(ids, [True] * len(ids)) for ids in texts]
    losses = token_losses(tiny_model, sequences, window, stride, 50, log)
    for ids, loss in zip(texts, losses):
        assert loss.tolist() == pytest.approx(brute_force(tiny_model, ids, window, stride), abs=1e-5)


def test_padding_and_neighbours_change_nothing(tiny_model: Any, log: RunLog) -> None:
    texts = [[7, 8, 9], [10, 11, 12, 13, 14, 15, 16]]
    sequences = [TokenSequence(ids, [True] * len(ids)) for ids in texts]
    together = token_losses(tiny_model, sequences, None, 1, 1000, log)
    alone = [token_losses(tiny_model, [each], None, 1, 1000, log)[0] for each in sequences]
    assert [len(each) for each in together] == [2, 6]
    for one, other in zip(together, alone):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-6)


def test_uniform_model_finds_each_token_as_improbable_as_any(tiny_model: Any, log: RunLog) -> None:
    with torch.no_grad():
        tiny_model.module.lm_head.weight.zero_()
    vocabulary = tiny_model.module.config.vocab_size
    [loss] = token_losses(tiny_model, [TokenSequence([5, 6, 7, 8], [True] * 4)], 2, 2, 100, log)
    assert loss.tolist() == pytest.approx([math.log(vocabulary)] * 3)


def test_more_overlap_never_gives_a_token_less_before_it() -> None:
    def context(stride: int) -> list[int]:
        return [
            token - each.begin for each in windows_of(0, 60, 8, stride) for token in range(each.first, each.end + 1)
        ]

    assert sum(context(1)) > sum(context(4)) > sum(context(8))


def test_stays_within_the_models_mode(make_llama: Callable[..., Any], tiny_model: Any, log: RunLog) -> None:
    tiny_model.module.train()
    token_losses(tiny_model, [TokenSequence([5, 6], [True] * 2)], None, 1, 100, log)
    assert tiny_model.module.training


def test_tokens_beyond_the_vocabulary_are_no_targets(tiny_model: Any, log: RunLog) -> None:
    """They stand for other inputs: the model maps them before its embeddings, here to token 0."""
    network = tiny_model.module
    original = network.forward

    def forward(input_ids: Any, **inputs: Any) -> Any:
        return original(input_ids=input_ids.masked_fill(input_ids >= network.config.vocab_size, 0), **inputs)

    network.forward = forward
    beyond = network.config.vocab_size
    [loss] = token_losses(tiny_model, [TokenSequence([5, beyond, beyond, 8], [True] * 4)], None, 1, 100, log)
    [plain] = token_losses(tiny_model, [TokenSequence([5, 0, 0, 8], [True] * 4)], None, 1, 100, log)
    assert loss.tolist() == pytest.approx([0.0, 0.0, float(plain[2])])
