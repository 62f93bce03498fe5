"""The distribution tokens are drawn from, and the draw itself: functions of tensors."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor


def filtered_logprobs(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities of the distribution that is sampled: (B, V) float32 from (B, V) logits.

    Temperature first, then top-k, then top-p (Holtzman et al., 2020, arXiv 1904.09751), as in Transformers; tokens
    left out have -inf. Temperature 0 is the limit: all probability on the most probable token, the first of equals.
    """
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, 0.0)
    if temperature != 1:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if top_p < 1:
        # Ascending and by the mass that is left out, as Transformers does it, so that both cut at the same token.
        ordered, order = logits.sort(dim=-1)
        left_out = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        left_out[:, -1] = False
        logits = logits.masked_fill(torch.empty_like(left_out).scatter(-1, order, left_out), -math.inf)
    return logits.log_softmax(-1)


def sample(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row, (B,): the inverse of the cumulative distribution (B, V) at uniforms (B,) in [0, 1).

    A row's token depends on its own number alone, and never has probability 0. Logits that differ in their last bits,
    as they do between batches of different shape, change it with a probability of about that difference.
    """
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Below the total, which rounding may have left a little under or over 1.
    target = torch.minimum(uniforms.double().unsqueeze(-1) * total, total.nextafter(torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return found.clamp_max(logprobs.shape[-1] - 1)  # a row of nan, whose token then has the log-probability nan


def sample_scored(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor]:
    """Tokens drawn from logits (B, V), and their log-probabilities as `Completion` defines them, (B,) each."""
    if temperature == 0:
        tokens, logprobs = logits.argmax(-1), logits.float().log_softmax(-1)
    else:
        logprobs = filtered_logprobs(logits, temperature, top_k, top_p)
        tokens = sample(logprobs, uniforms)
    return tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def stream_key(ids: Sequence[int], sample: int, seed: int, purpose: str = "draw") -> int:
    """Key, a signed 64-bit number, of the random stream of one completion: number `sample` of the prompt `ids`.

    It depends on nothing else, so that no neighbour in a batch changes a completion. A prompt given twice in one call
    therefore gets the same completions twice; different ones are what `n` is for. `purpose`, up to 16 bytes, gives an
    algorithm that needs several random numbers per token independent streams.
    """
    digest = hashlib.blake2b(digest_size=8, person=purpose.encode())
    digest.update(f"{seed}/{sample}/".encode())
    digest.update(array("q", ids).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def uniforms(keys: Tensor, counters: Tensor) -> Tensor:
    """Number `counters` of the stream of each of `keys`, both int64 of one shape: float64 in [0, 1).

    SplitMix64 (Steele, Lea & Flood, 2014): a hash of key and counter, so any number is had without those before it.
    """
    mixed = keys + (counters + 1) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() * 2.0**-53


def _signed(constant: int) -> int:
    """The signed 64-bit integer with the bits of `constant`; int64 tensors multiply modulo 2**64."""
    return constant - (1 << 64)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift to the right that fills with zeros; torch's own copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
