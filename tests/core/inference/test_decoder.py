"""Rows in one padded batch: what their padding is shows nowhere, and whatever the model keeps is handed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmflow.data.sample import Prompt
from lmflow.inference.decoder import Decoder
from lmflow.models.language_model import LanguageModel
from lmflow.testing.architectures import tiny_architecture


@torch.no_grad()
def test_what_padding_is_changes_nothing(model: Any):
    prompts = [Prompt([5, 6, 7, 8]), Prompt([9])]
    found = [Decoder(model.module).prefill(prompts, filler=filler) for filler in (0, 33)]
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["mamba", "rwkv", "jamba"])
@torch.no_grad()
def test_a_state_is_handed_on_under_the_name_it_has(kind: str, make_tokenizer: Any):
    model = LanguageModel(tiny_architecture(kind, 300), make_tokenizer(), kind)
    decoder = Decoder(model.module)
    assert not decoder.flexible
    decoder.prefill([Prompt([5, 6, 7])])
    found = decoder.step(torch.tensor([8]))
    expected = model.module(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert decoder.width == 4
