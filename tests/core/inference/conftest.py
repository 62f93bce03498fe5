"""Models of three architectures around one tokenizer, and prompts of mixed length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A LanguageModel of a few thousand seeded weights, its distribution sharper than random weights give."""
    from lmflow.testing.tiny import tiny_model

    return partial(tiny_model, seed=1, sharpness=6)


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    return make_model()


@pytest.fixture(scope="session")
def prompts(make_tokenizer: Callable[..., Any]) -> list[Any]:
    from lmflow.data.sample import Prompt

    texts = [
        "the quick brown fox jumps over",
        "lazy",
        "a model learns to answer and then to stop, and more: ä€",
        "user",
    ]
    return [Prompt(make_tokenizer()(text)["input_ids"]) for text in texts]


@pytest.fixture
def scripted(make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """A LanguageModel that says given tokens: after token i of the script, with near certainty token i + 1."""

    def make(script: list[int]) -> Any:
        import torch
        from torch import nn
        from transformers import DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        from lmflow.models.language_model import LanguageModel

        class Scripted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                from transformers import LlamaConfig

                self.config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=4096)
                self.weight = nn.Parameter(torch.zeros(1))

            def forward(
                self, input_ids: Any, past_key_values: DynamicCache, use_cache: bool, attention_mask: Any = None
            ) -> Any:
                rows, width = input_ids.shape
                past_key_values.update(torch.zeros(rows, 1, width, 1), torch.zeros(rows, 1, width, 1), 0)
                logits = torch.zeros(rows, width, len(tokenizer))
                logits[:, -1, script[past_key_values.get_seq_length() - 1]] = 50.0
                return CausalLMOutputWithPast(logits=logits)

        tokenizer = make_tokenizer()
        return LanguageModel(Scripted().eval(), tokenizer, "scripted")

    return make
