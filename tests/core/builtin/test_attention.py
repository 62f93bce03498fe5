"""Attention `sdpa` and `eager`: both are what Transformers builds the model with, and give the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmflow.builtin.attention import Eager, Sdpa
from lmflow.components import Attention, LoadRequest
from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import model_from_reference


@pytest.mark.parametrize("attention", [Sdpa(), Eager()], ids=lambda each: each.name)
def test_the_model_is_built_with_it(attention: Attention, model_directory: Path):
    model = model_from_reference(load_plugins(), str(model_directory)).load(LoadRequest(attention=attention))
    assert model.module.config._attn_implementation == attention.name  # type: ignore[union-attr]
    assert attention.implementation(model.module.config, "cuda") == attention.name


def test_both_give_the_same_numbers_up_to_rounding(model_directory: Path):
    component = model_from_reference(load_plugins(), str(model_directory))
    ids = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 25:] = 0
    with torch.no_grad():
        one, other = (
            component.load(LoadRequest(attention=each)).module(input_ids=ids, attention_mask=mask).logits
            for each in (Sdpa(), Eager())
        )
    torch.testing.assert_close(one[mask.bool()], other[mask.bool()], rtol=1e-4, atol=1e-5)
