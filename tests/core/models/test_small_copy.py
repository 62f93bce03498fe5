"""A small copy has the architecture of the model, and nothing of its size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from lmflow.errors import LmflowError
from lmflow.models.small_copy import VOCABULARY, shrunken, small_copy

LARGE = {"num_attention_heads": 32, "hidden_size": 4096, "num_hidden_layers": 48}


def skeleton(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(getattr(transformers, name)(**options))


def test_heads_are_as_wide_as_before_and_few():
    small = shrunken(transformers.LlamaConfig(**LARGE, num_key_value_heads=8, pad_token_id=31_999))
    assert (small.hidden_size // small.num_attention_heads, small.num_key_value_heads) == (128, 1)
    assert (small.num_hidden_layers, small.vocab_size, small.pad_token_id) == (2, VOCABULARY, 0)


def test_heads_of_linear_attention_are_few_and_narrow():
    """Without their kernel, those of Qwen3-Next took ten seconds for fifteen tokens."""
    small = shrunken(transformers.Qwen3NextConfig())
    assert (small.linear_num_value_heads, small.linear_num_key_heads, small.linear_key_head_dim) == (2, 2, 16)
    assert {*small.layer_types} == {"linear_attention", "full_attention"}


def test_each_kind_of_layer_is_there():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = transformers.Gemma3TextConfig(layer_types=kinds * 2, num_hidden_layers=12)
    assert shrunken(config).layer_types == kinds
    assert config.num_hidden_layers == 12, "the configuration itself stays as it is"
    late = transformers.Gemma3TextConfig(layer_types=kinds[:1] * 11 + kinds[-1:], num_hidden_layers=12)
    with pytest.raises(LmflowError, match="first 8 layers are not of all kinds"):
        shrunken(late)


@pytest.mark.parametrize("name", ["LlamaConfig", "GPT2Config", "Qwen2Config", "Qwen3MoeConfig", "BloomConfig"])
def test_a_copy_is_small_and_always_the_same(name: str):
    module = skeleton(name)
    before = copy.deepcopy(module.config)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one, two = (small_copy(module, "cpu") for _ in range(2))
    assert torch.equal(torch.rand(1), expected), "the run's random numbers are left alone"
    assert type(one) is type(module)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert sum(each.numel() for each in one.parameters()) < 10_000_000
    assert module.config.to_dict() == before.to_dict()


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(LmflowError, match="Linear has no configuration of one language model"):
        small_copy(nn.Linear(1, 1), "cpu")

    class Odd(nn.Module):
        config = transformers.LlamaConfig(**LARGE)

        def __init__(self, *_: object) -> None:
            raise ValueError("only whole")

    with pytest.raises(LmflowError, match="no small Odd can be built: only whole"):
        small_copy(Odd.__new__(Odd), "cpu")
