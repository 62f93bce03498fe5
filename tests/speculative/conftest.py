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


@pytest.fixture(scope="session")
def make_letters() -> Callable[..., Any]:
    """See `lmflow.testing.tiny.tiny_letters`."""
    from lmflow.testing.tiny import tiny_letters

    return tiny_letters


@pytest.fixture(scope="session")
def prompts(make_tokenizer: Callable[..., Any]) -> list[Any]:
    """200 prompts of mixed length, the same words in many of them."""
    import random

    from lmflow.data.sample import Prompt

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
