"""The distribution tokens are drawn from, and the draw itself: functions of tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def filtered_logprobs(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities of the distribution that is sampled: (B, V) float32 from (B, V) logits.

    Temperature first, then top-k, then top-p (Holtzman et al., 2020, arXiv 1904.09751), as in Transformers; tokens
    left out have -inf. With temperature 0 the greedy token is drawn, and what is returned is the plain log-softmax.
    """
    logits = logits.float()
    if temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        mass_before = probabilities.cumsum(-1) - probabilities
        removed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
        logits = logits.masked_fill(removed, -math.inf)
    return logits.log_softmax(-1)


def draw(logprobs: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """One token per row, (B,): the inverse of the cumulative distribution (B, V) at uniforms (B,) in [0, 1).

    Each row's draw depends on its own number alone. With temperature 0 the most probable token, the first of equals.
    """
    if temperature == 0:
        return logprobs.argmax(-1)
    cumulative = logprobs.exp().double().cumsum(-1)
    # Scaling by the total keeps rounding from pointing past the last token with any probability.
    target = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logprobs.shape[-1] - 1)


def uniform_streams(prompts: Sequence[Sequence[int]], n: int, length: int, seed: int) -> Tensor:
    """Random numbers in [0, 1) for every completion, (len(prompts) * n, length) float64, n rows per prompt in turn.

    A row is a function of (seed, the prompt's ids, which of its samples), so that no neighbour changes it. A prompt
    given twice in one call therefore gets the same completions twice; different ones are what `n` is for.
    """
    rows = np.empty((len(prompts) * n, length))
    for index, ids in enumerate(prompts):
        digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        for sample in range(n):
            rows[index * n + sample] = np.random.default_rng([seed, key, sample]).random(length)
    return torch.from_numpy(rows)
