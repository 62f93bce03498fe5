"""Targets and drafts: of the tiny Llama, and of a vocabulary small enough to enumerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A LanguageModel of seeded weights, its distribution sharper than random weights give.

    `near` is the seed of noise added to the weights, so that models of one seed are alike but not the same.
    """
    from lmflow.testing.tiny import tiny_model

    def make(architecture: str = "llama", *, seed: int = 1, near: int | None = None, **options: Any) -> Any:
        return tiny_model(architecture, seed=seed, sharpness=6, noise_seed=near, **options)

    return make


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
        from lmflow.testing.tiny import scale_matrices

        module = make_llama(count, seed=seed, eos_token_id=0, pad_token_id=None)
        scale_matrices(module, scale)
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
