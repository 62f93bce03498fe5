"""The growing cache holds what transformers' own holds."""

from __future__ import annotations

import torch
from transformers import LlamaConfig
from transformers.cache_utils import DynamicLayer

from lmflow.inference.kv_cache import SPARE, GrowingLayer, concat, growing_cache, is_flexible, trim_left


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4, generator=generator), torch.randn(rows, 2, tokens, 3, generator=generator)


def test_every_operation_equals_that_of_the_plain_layer():
    ours, plain = GrowingLayer(), DynamicLayer()
    for step in range(3 * SPARE):
        rows = 3 if step == 0 else plain.keys.shape[0]
        given = states(rows, 5 if step == 0 else 1, step)
        for mine, theirs in zip(ours.update(*given), plain.update(*given)):
            assert torch.equal(mine, theirs)
        for layer in ours, plain:
            if step == 10:
                layer.batch_select_indices(torch.tensor([2, 0, 0]))
            if step == 20:
                layer.crop(-4)
            if step == 50:
                layer.batch_repeat_interleave(2)
        assert ours.get_seq_length() == plain.get_seq_length()


def test_appending_does_not_copy_what_is_there():
    layer = GrowingLayer()
    layer.update(*states(2, 5, 0))
    place = layer.keys.data_ptr()
    for step in range(SPARE):
        layer.update(*states(2, 1, step))
    assert layer.keys.data_ptr() == place


def test_joining_pads_on_the_left_and_dropping_undoes_it():
    config = LlamaConfig(num_hidden_layers=1)
    long, short = growing_cache(config), growing_cache(config)
    first, second = states(1, 7, 0), states(2, 4, 1)
    long.update(*first, 0)
    short.update(*second, 0)
    concat(long, short)
    keys = long.layers[0].keys
    assert keys.shape == (3, 2, 7, 4)
    assert torch.equal(keys[:1], first[0])
    assert torch.equal(keys[1:, :, 3:], second[0])
    assert not keys[1:, :, :3].any()
    long.batch_select_indices(torch.tensor([1, 2]))
    trim_left(long, 3)
    assert torch.equal(long.layers[0].values, second[1])
    new = states(2, 1, 2)
    long.update(*new, 0)
    assert torch.equal(long.layers[0].values, torch.cat([second[1], new[1]], -2))


def test_sliding_windows_keep_their_own_layer_and_are_not_flexible():
    from transformers import MistralConfig

    assert is_flexible(growing_cache(LlamaConfig(num_hidden_layers=2)))
    assert not is_flexible(growing_cache(MistralConfig(num_hidden_layers=2, sliding_window=8)))
