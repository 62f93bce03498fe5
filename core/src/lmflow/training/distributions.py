"""What can be said of next-token distributions from their logits: entropy, and divergence from one another."""

from __future__ import annotations

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """-Σ p log p of each row, in nats: (N,) from logits (N, V)."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(p || q) = Σ p (log p - log q) of each row, in nats: (N,) from logits (N, V) of p and of q."""
    ours, theirs = logits.log_softmax(-1), others.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)
