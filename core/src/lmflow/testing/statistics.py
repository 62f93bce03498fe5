"""The distribution an inferencer must sample from, written anew and plainly, and how well counts agree with it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from lmflow.inference.types import Sampling

Outcome = TypeVar("Outcome", bound=Hashable)


def reference_probabilities(logits: Sequence[float], sampling: Sampling) -> dict[int, float]:
    """Probability of each token that can be sampled: softmax at the temperature, then top-k, then top-p.

    Top-k keeps the k most probable tokens; top-p then keeps the smallest set of the most probable that has at least
    this probability (Holtzman et al., 2020, arXiv 1904.09751). What is kept is normalised after each.
    """
    highest = max(logits)
    weights = {token: math.exp((logit - highest) / sampling.temperature) for token, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])
    kept = ranked[: sampling.top_k] if sampling.top_k else ranked
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        if mass >= sampling.top_p * total:
            break
        nucleus.append(token)
        mass += weights[token]
    return {token: weights[token] / mass for token in nucleus if weights[token]}


def chance(counts: Mapping[Outcome, int], probabilities: Mapping[Outcome, float]) -> float:
    """Probability that counts drawn from `probabilities` are at least as far from what is expected as `counts` are.

    Pearson's chi-square test; outcomes expected fewer than five times are taken together.
    """
    import torch

    total = sum(counts.values())
    common = [outcome for outcome, p in probabilities.items() if p * total >= 5]
    seen = [counts.get(outcome, 0) for outcome in common]
    expected = [probabilities[outcome] * total for outcome in common]
    if total - sum(expected) > 1e-6 * total:
        seen.append(total - sum(seen))
        expected.append(total - sum(expected))
    statistic = sum((a - b) ** 2 / b for a, b in zip(seen, expected, strict=True))
    freedom = torch.tensor((len(seen) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))
