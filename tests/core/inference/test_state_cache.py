"""The rows of what a model keeps, whatever holds them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionAndFullAttentionLayer

from lmflow.inference.kv_cache import GrowingLayer
from lmflow.inference.state_cache import returned_state, select_rows


def test_what_a_model_returned_goes_in_under_its_own_name():
    output = SimpleNamespace(logits=1, state=[2], hidden_states=3, other=4, cache_params=None)
    takes = ("input_ids", "state", "hidden_states", "cache_params", "logits")
    assert returned_state(output, takes) == {"state": [2]}


def test_lists_mappings_and_shared_tensors():
    shared = torch.arange(3.0)
    state: dict[str, Any] = {"state": [shared, shared, torch.zeros(5)], "rnn": {0: (torch.arange(6.0).view(3, 2),)}}
    found = select_rows(state, torch.tensor([2, 0, 0, 1]), 3)
    assert found["state"][0].tolist() == [2, 0, 0, 1]
    assert found["state"][0] is found["state"][1]
    assert found["state"][2].shape == (5,)
    assert found["rnn"][0][0].tolist() == [[4, 5], [0, 1], [0, 1], [2, 3]]


def test_a_layer_with_keys_and_states_has_all_of_them_gathered():
    layer = LinearAttentionAndFullAttentionLayer()
    layer.update(torch.arange(2.0).view(2, 1, 1, 1), torch.arange(2.0).view(2, 1, 1, 1))
    layer.update_conv_state(torch.arange(8.0).view(2, 1, 4))
    layer.update_recurrent_state(torch.arange(2.0).view(2, 1))
    cache = DynamicCache()
    cache.layers = [layer]
    assert select_rows({"past_key_values": cache}, torch.tensor([1, 1, 0]), 2)["past_key_values"] is cache
    assert layer.keys.flatten().tolist() == layer.recurrent_states[0].flatten().tolist() == [1, 1, 0]
    assert layer.conv_states[0][:, 0, 0].tolist() == [4, 4, 0]


def test_a_growing_layer_keeps_its_room():
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1))
    cache = DynamicCache()
    cache.layers = [layer]
    select_rows(cache, torch.tensor([0, 0]), 1)
    assert layer.keys.shape == (2, 1, 2, 1)
    assert layer._key_store is not None
    assert layer._key_store.shape[2] > 2
