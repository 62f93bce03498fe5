"""Sampled completions as training sequences: the very tokens that were sampled, never their text tokenised anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmflow.data.sample import Prompt, TokenSequence
from lmflow.inference.types import Completion


def completion_sequence(
    prompt: Prompt, completion: Completion, source: str = "", objective_inputs: Mapping[str, Any] | None = None
) -> TokenSequence:
    """Prompt and completion as sampled; the targets are the completion's tokens, the one that ends it included."""
    mask = [False] * len(prompt.ids) + [True] * len(completion.ids)
    return TokenSequence(
        [*prompt.ids, *completion.ids], mask, source, prompt.model_inputs, dict(objective_inputs or {})
    )
