"""Whether logits of two forward passes differ by more than rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOISE = 8.0
"""How many times the rounding that plain passes of other shapes show is still called rounding."""
FLOOR = {True: 1e-4, False: 0.05}
"""Differences, in standard deviations of the logits, that are never called wrong: in float32, and in fewer bits."""
EQUAL_NOISE, EQUAL_FLOOR = 4.0, 1e-5
"""The same where shapes are equal: a row rounds as before whatever is in the others, except in models of experts, whose
products are as large as the tokens that chose an expert."""


def type_of(module: nn.Module) -> str:
    """What Transformers calls a model of this kind."""
    return str(getattr(getattr(module, "config", None), "model_type", "this type"))


def judgeable(logits: Tensor) -> bool:
    """Whether logits (T, V) can be compared: none is NaN or +inf, and some in each row are not -inf."""
    return bool((logits < torch.inf).all() and logits.isfinite().any(-1).all())


def distance(found: Tensor, right: Tensor) -> Tensor:
    """Root mean square of the difference of logits (…, V), in standard deviations of the right ones: (…).

    What is not finite in `found` is infinitely far; what is -inf in `right`, such as padded rows of a head, does not
    count.
    """
    counts = right.isfinite()
    kept = right.masked_fill(~counts, 0.0)
    number = counts.sum(-1)
    centered = (kept - kept.sum(-1, keepdim=True) / number.unsqueeze(-1)).masked_fill(~counts, 0.0)
    spread = (centered.pow(2).sum(-1) / number).sqrt().clamp_min(1e-12)
    off = (found - kept).masked_fill(~counts, 0.0).nan_to_num(torch.inf, torch.inf, torch.inf)
    return (off.pow(2).sum(-1) / number).sqrt() / spread


def looks_ahead(one: Tensor, other: Tensor, limit: float) -> bool:
    """Whether the same tokens have other logits, (T, V), because another text follows them.

    The median counts: a model that looks ahead does so everywhere, and where rounding has chosen another expert for
    some token, that is one token.
    """
    return not float(distance(other, one).median()) <= limit


def not_causal(module: nn.Module) -> str:
    """What to say of a model that looks ahead."""
    return (
        f"A model of type {type_of(module)} is no causal language model: later tokens change what it says of earlier "
        "ones, so it does not predict the next token. Choose another with --model."
    )
