"""A reward in Python, as a user would write one: short and polite answers are good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

POLITE = ("sorry", "please", "thank", "happy to", "glad", "help")
LONG = 60
"""Words at which an answer's shortness is worth nothing."""


def short_and_polite(
    prompts: Sequence[str], completions: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> list[float]:
    """From 0 to 1: half for being short, half for a polite word; an empty answer gets 0."""
    return [score(completion) for completion in completions]


def score(completion: str) -> float:
    """One answer's reward."""
    words = completion.split()
    if not words:
        return 0.0
    polite = any(mark in completion.lower() for mark in POLITE)
    return 0.5 * max(0.0, 1 - len(words) / LONG) + 0.5 * polite
