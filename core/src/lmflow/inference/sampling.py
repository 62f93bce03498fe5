"""The distribution tokens are sampled from, and sampling itself: functions of tensors."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lmflow.inference.types import Sampling


Option = TypeVar("Option", int | Tensor, float | Tensor)


@dataclass(frozen=True, slots=True)
class Filters:
    """What makes of logits (R, V) the distribution to sample: numbers for all rows, or tensors (R,) of one for each."""

    temperature: float | Tensor
    top_k: int | Tensor
    top_p: float | Tensor
    min_new_tokens: int | Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], device: torch.device) -> Filters:
        """Those of rows with these samplings; numbers where all are alike, which is faster."""
        rows = [(each.temperature, each.top_k, each.top_p, each.min_new_tokens) for each in samplings]
        if len(set(rows)) == 1:
            return cls(*rows[0])

        def column(values: Iterable[float], kind: torch.dtype) -> Tensor:
            return torch.tensor(list(values), dtype=kind).to(device)

        temperature, top_k, top_p, min_new_tokens = zip(*rows, strict=True)
        return cls(
            column(temperature, torch.float64),  # as Python's numbers
            column(top_k, torch.long),
            column(top_p, torch.float64),
            column(min_new_tokens, torch.long),
        )

    @property
    def all_greedy(self) -> bool:
        """Whether no row needs a random number."""
        return not isinstance(self.temperature, Tensor) and self.temperature == 0

    def repeated(self, times: int) -> Filters:
        """Those of rows that stand `times` times each, one after the other."""
        return Filters(
            _repeated(self.temperature, times),
            _repeated(self.top_k, times),
            _repeated(self.top_p, times),
            _repeated(self.min_new_tokens, times),
        )


def filtered_logprobs(
    logits: Tensor, temperature: float | Tensor, top_k: int | Tensor = 0, top_p: float | Tensor = 1.0
) -> Tensor:
    """Log-probabilities of the distribution that is sampled: (B, V) float32 from (B, V) logits.

    Temperature first, then top-k, then top-p (Holtzman et al., 2020, arXiv 1904.09751), as in Transformers; tokens
    left out have -inf. Temperature 0 is the limit: all probability on the most probable token, the first of equals.
    Numbers hold for all rows; tensors, (B,) all three, give each row its own.
    """
    logits = logits.float()
    if isinstance(temperature, Tensor):
        assert isinstance(top_k, Tensor)
        assert isinstance(top_p, Tensor)
        return _filtered_by_row(logits, temperature, top_k, top_p)
    assert not isinstance(top_k, Tensor)
    if temperature == 0:
        return _certain(logits)
    if temperature != 1:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -math.inf)
    if not isinstance(top_p, Tensor) and top_p < 1:
        logits = logits.masked_fill(_outside_nucleus(logits, 1 - top_p), -math.inf)
    return logits.log_softmax(-1)


def _filtered_by_row(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The same with options for each row, (B,) each."""
    greedy = (temperature == 0).unsqueeze(-1)
    vocabulary = logits.shape[-1]
    scaled = logits / temperature.to(logits.dtype).unsqueeze(-1).masked_fill(greedy, 1.0)
    if top_k.any():
        k = torch.where(top_k > 0, top_k, vocabulary).clamp_max(vocabulary).unsqueeze(-1)
        ranked = scaled.topk(int(top_k.max().clamp_max(vocabulary)), dim=-1).values
        threshold = ranked.gather(-1, (k - 1).clamp_max(ranked.shape[-1] - 1))
        scaled = scaled.masked_fill((scaled < threshold) & (k < vocabulary), -math.inf)
    if (top_p < 1).any():
        # 1 - top_p in double precision, as for numbers, so that both cut at the same token.
        left_out = (1 - top_p).to(logits.dtype).unsqueeze(-1)
        scaled = scaled.masked_fill(_outside_nucleus(scaled, left_out) & (top_p < 1).unsqueeze(-1), -math.inf)
    return torch.where(greedy, _certain(logits), scaled.log_softmax(-1))


def _outside_nucleus(logits: Tensor, left_out: float | Tensor) -> Tensor:
    """Which of the tokens (B, V) are not in the smallest set with all but the mass `left_out`.

    Ascending and by the mass that is left out, as Transformers does it, so that both cut at the same token.
    """
    ordered, order = logits.sort(dim=-1)
    outside = ordered.softmax(-1).cumsum(-1) <= left_out
    outside[:, -1] = False
    return torch.empty_like(outside).scatter(-1, order, outside)


def _repeated(option: Option, times: int) -> Option:
    return option.repeat_interleave(times) if isinstance(option, Tensor) else option


def _certain(logits: Tensor) -> Tensor:
    """Log-probability 0 for the most probable token of each row, the first of equals."""
    return torch.full_like(logits, -math.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)


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
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Tokens sampled from logits (B, V), and their log-probabilities as `Completion` defines them, (B,) each.

    Options as in `filtered_logprobs`.
    """
    if not isinstance(temperature, Tensor) and temperature == 0:
        tokens, logprobs = logits.argmax(-1), logits.float().log_softmax(-1)
    else:
        logprobs = filtered_logprobs(logits, temperature, top_k, top_p)
        tokens = sample(logprobs, uniforms)
        logprobs = scored(logits, logprobs, temperature)
    return tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def scored(logits: Tensor, logprobs: Tensor, temperature: float | Tensor) -> Tensor:
    """Log-probabilities (B, V) to report: those sampled from, but of greedy rows the log-softmax of their logits."""
    if not isinstance(temperature, Tensor):
        return logits.float().log_softmax(-1) if temperature == 0 else logprobs
    return torch.where((temperature == 0).unsqueeze(-1), logits.float().log_softmax(-1), logprobs)


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
