"""Where proposals come from: a smaller model, or what stands in the text already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lmflow.data.sample import Prompt
from lmflow.inference.generate import SamplingRules
from lmflow.inference.sampling import Filters, filtered_logprobs, sample, scored, uniforms
from lmflow_speculative.blocks import BlockDecoder
from lmflow_speculative.lengths import PRIOR
from lmflow_speculative.rows import Row
from lmflow_speculative.statistics import Statistics

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens proposed for each row, some perhaps none, how likely the proposer thinks they are, and log q.

    `logprobs`, (R, K, V), is None where every token was proposed with certainty.
    """

    tokens: list[list[int]]
    confidences: list[list[float]]
    logprobs: Tensor | None = None


class Proposer(Protocol):
    """Proposes for the rows of one batch; rows leave and join as in the batch."""

    def propose(self, rows: Sequence[Row], limits: Sequence[int]) -> Proposal:
        """At most `limits[r]` tokens after the history of each row, fewer where more are not worth it."""

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget what was read beyond the first `lengths[r]` tokens of each row."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""

    def concat(self, other: Proposer) -> None:
        """Add the rows of another proposer of the same kind below these."""


class DraftProposer:
    """Proposes what a smaller model draws, from the distribution the target is sampled with: Leviathan et al."""

    def __init__(self, draft: LanguageModel, vocabulary: int, rules: SamplingRules, statistics: Statistics) -> None:
        self._decoder = BlockDecoder(draft.module, statistics.draft)
        self._reach = draft.context_length
        self._rules = rules
        self._device = draft.device
        self._vocabulary = vocabulary  # of the target's logits: those of the draft may have more or fewer to spare

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int]) -> None:
        """Read prompts, and repeat row i `repeats[i]` times."""
        self._decoder.prefill(prompts, repeats)

    def propose(self, rows: Sequence[Row], limits: Sequence[int]) -> Proposal:
        """Draw from the draft token by token; a row whose history reaches the end of its context gets none."""
        limits = [self._within_reach(row, limit) for row, limit in zip(rows, limits, strict=True)]
        tokens: list[list[int]] = [[] for _ in rows]
        confidences: list[list[float]] = [[] for _ in rows]
        kept: list[list[float]] = [[] for _ in rows]
        logprobs: list[Tensor] = []
        filters = Filters.of([row.sampling for row in rows], self._device)
        going = {index for index, limit in enumerate(limits) if limit > 0}
        held = self._decoder.lengths
        blocks = [row.history[held[index] :] if index in going else [] for index, row in enumerate(rows)]
        while going:
            places = torch.tensor([max(len(block) - 1, 0) for block in blocks], device=self._device)
            logits = self._decoder.read(blocks)[torch.arange(len(rows), device=self._device), places]
            drawn, confidence = self._draw(rows, logits, filters, logprobs)
            for index in going:
                tokens[index].append(drawn[index])
                confidences[index].append(confidence[index])
                chance = rows[index].length.chance(confidence[index])
                kept[index].append(chance * (kept[index][-1] if kept[index] else 1.0))
            going = {i for i in going if len(tokens[i]) < limits[i] and rows[i].length.goes_on(kept[i])}
            blocks = [tokens[index][-1:] if index in going else [] for index in range(len(rows))]
        sampled = bool(logprobs) and not filters.all_greedy
        return Proposal(tokens, confidences, torch.stack(logprobs, dim=1) if sampled else None)

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget what was read beyond the first `lengths[r]` tokens of each row."""
        self._decoder.crop(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._decoder.keep(rows)

    def concat(self, other: Proposer) -> None:
        """Add the rows of another proposer with the same draft below these."""
        assert isinstance(other, DraftProposer)
        self._decoder.concat(other._decoder)

    def _within_reach(self, row: Row, limit: int) -> int:
        """The last proposal is never read by the draft, so one more than its context holds can be made."""
        return limit if self._reach is None else min(limit, self._reach - len(row.history) + 1)

    def _draw(
        self, rows: Sequence[Row], logits: Tensor, filters: Filters, logprobs: list[Tensor]
    ) -> tuple[list[int], list[float]]:
        """A token for every row from logits (R, V), and the probability of the most probable, (R,) each.

        What they are sampled from is added to `logprobs`, which has what the tokens before were sampled from.
        """
        ahead = len(logprobs)
        counts = torch.tensor([row.drawn + ahead for row in rows], device=self._device)
        logits = self._rules.allowed(_resized(logits, self._vocabulary), counts, filters.min_new_tokens)
        if filters.all_greedy:
            best = logits.max(-1)
            logprobs.append(best.values)
            return best.indices.tolist(), (best.values - logits.logsumexp(-1)).exp().tolist()
        logprobs.append(filtered_logprobs(logits, filters.temperature, filters.top_k, filters.top_p))
        keys = torch.tensor([row.keys.propose for row in rows], device=self._device)
        drawn = sample(logprobs[-1], uniforms(keys, counts))
        confidences = scored(logits, logprobs[-1], filters.temperature).amax(-1).exp()
        return drawn.tolist(), confidences.tolist()


class LookupProposer:
    """Proposes what followed the last few tokens where they stood before: prompt lookup (Saxena, 2023).

    Nothing is computed for it, so it suits answers that repeat their prompt: extracts, corrections, code.
    """

    def __init__(self, rows: Sequence[Row], longest: int, never: Sequence[int] = ()) -> None:
        self._indices = [NgramIndex(longest) for _ in rows]
        self._never = frozenset(never)

    def propose(self, rows: Sequence[Row], limits: Sequence[int]) -> Proposal:
        """What followed the latest earlier place of each row's last tokens."""
        tokens = []
        for row, index, limit in zip(rows, self._indices, limits, strict=True):
            found = index.following(row.history, limit) if limit > 0 else []
            # A prompt may hold tokens that stand for other inputs, which the model can neither draw nor read again.
            found = list(takewhile(lambda token: token not in self._never, found))
            tokens.append(found[: _worthwhile(row, len(found))])
        return Proposal(tokens, [[PRIOR] * len(found) for found in tokens])

    def crop(self, lengths: Sequence[int]) -> None:
        """Nothing was read that could be wrong."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._indices = [self._indices[row] for row in rows]

    def concat(self, other: Proposer) -> None:
        """Add the rows of another proposer of this kind below these."""
        assert isinstance(other, LookupProposer)
        self._indices = self._indices + other._indices


class NgramIndex:
    """Where each run of 1 to `longest` tokens last ended, but for those that end the history."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def following(self, history: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that followed the longest run which ends `history` and stood in it before."""
        for end in range(self._indexed + 1, len(history)):
            for size in range(1, min(self._longest, end) + 1):
                self._ends[tuple(history[end - size : end])] = end
        self._indexed = max(self._indexed, len(history) - 1)
        for size in range(min(self._longest, len(history) - 1), 0, -1):
            place = self._ends.get(tuple(history[-size:]))
            if place is not None:
                return list(history[place : place + limit])
        return []


def _worthwhile(row: Row, available: int) -> int:
    """How many of so many tokens to propose for a row."""
    kept: list[float] = []
    while len(kept) < available and row.length.goes_on(kept):
        kept.append(row.length.chance(PRIOR) * (kept[-1] if kept else 1.0))
    return len(kept)


def _resized(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits (R, V') as (R, V): tokens the draft does not know are never proposed."""
    missing = vocabulary - logits.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
    return logits[:, :vocabulary]
