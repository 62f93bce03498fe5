"""Targets and drafts: of the tiny Llama, and of a vocabulary small enough to enumerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_model(make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """A LanguageModel of seeded weights, its distribution sharper than random weights give.

    `near` is the seed of noise added to the weights, so that models of one seed are alike but not the same.
    """
    tokenizer = make_tokenizer()

    def make(architecture: str = "llama", *, seed: int = 1, near: int | None = None, **options: Any) -> Any:
        import torch
        from transformers import (
            GPT2Config,
            GPT2LMHeadModel,
            MistralConfig,
            MistralForCausalLM,
            Qwen2Config,
            Qwen2ForCausalLM,
        )

        from lmflow.models import LanguageModel

        torch.manual_seed(seed)
        common = {"vocab_size": len(tokenizer), "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
        blocks = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
        if architecture == "llama":
            module = make_llama(len(tokenizer), seed=seed, **options)
        elif architecture == "gpt2":
            module = GPT2LMHeadModel(
                GPT2Config(**({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256} | common | options))
            )
        elif architecture == "qwen2":
            module = Qwen2ForCausalLM(Qwen2Config(**(blocks | common | options)))
        else:
            module = MistralForCausalLM(MistralConfig(**(blocks | common | options)))
        perturb(module, near)
        return LanguageModel(module.eval(), tokenizer, f"{architecture}-{seed}-{near}")

    return make


def perturb(module: Any, near: int | None, scale: float = 6.0, noise: float = 0.001) -> None:
    import torch

    with torch.no_grad():
        generator = torch.Generator().manual_seed(near or 0)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
                if near is not None:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * noise * scale)


class Letters:
    """A tokenizer of so many letters, the first of which ends an answer."""

    pad_token_id = None
    eos_token_id = 0

    def __init__(self, count: int) -> None:
        self._letters = "".join(chr(ord("a") + i) for i in range(count))

    def get_vocab(self) -> dict[str, int]:
        return {letter: number for number, letter in enumerate(self._letters)}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self._letters[i] for i in ids if i or not skip_special_tokens)


@pytest.fixture(scope="session")
def make_letters(make_llama: Callable[..., Any]) -> Callable[..., Any]:
    """A LanguageModel over a vocabulary of a few letters."""

    def make(seed: int, count: int = 6, scale: float = 4.0) -> Any:
        from lmflow.models import LanguageModel

        module = make_llama(count, seed=seed, eos_token_id=0, pad_token_id=None)
        perturb(module, None, scale)
        return LanguageModel(module, Letters(count), f"letters-{seed}")

    return make


@pytest.fixture(scope="session")
def prompts(make_tokenizer: Callable[..., Any]) -> list[Any]:
    """200 prompts of mixed length, the same words in many of them."""
    import random

    from lmflow.inference.completion import Prompt

    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "model",
        "learns",
        "to",
        "answer",
        "and",
        "then",
        "to",
        "stop",
        "user",
    ]
    order = random.Random(0)
    texts = [" ".join(order.choices(words, k=order.randint(1, 12))) for _ in range(200)]
    return [Prompt(make_tokenizer()(text)["input_ids"]) for text in texts]
