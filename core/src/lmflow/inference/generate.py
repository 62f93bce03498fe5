"""Sampling token by token: the rows of a batch, and the engine that lets them in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmflow.components.engine import completion_budget
from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.batching import Owner, PassEngine
from lmflow.inference.decoder import RowDecoder
from lmflow.inference.sampling import Filters, sample_scored, stream_key, uniforms
from lmflow.inference.scheduler import Demand
from lmflow.inference.ways import make_decoder

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


class DecodingEngine(PassEngine["DecodingBatch"]):
    """An engine that samples one token per row in each forward pass."""

    def _begin(
        self, prompts: Sequence[Prompt], repeats: Sequence[int], owners: list[Owner]
    ) -> tuple[DecodingBatch, int]:
        decoder = make_decoder(self.model)
        logits = decoder.prefill(prompts, repeats)
        batch = DecodingBatch(self.model, decoder, Rows.begin(owners, self.model.device), owners)
        return batch, batch.sample(logits)

    def _join(self, batch: DecodingBatch, entering: DecodingBatch) -> None:
        batch.concat(entering)


def completion_budgets(
    prompts: Sequence[Prompt], new_tokens: int | Sequence[int], context_length: int | None
) -> list[int]:
    """Tokens each prompt's completion may have: `new_tokens`, or fewer where the model's context ends before.

    Raises DataError for a prompt without a token, or without room for one more.
    """
    most = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
    return [
        completion_budget(len(prompt.ids), limit, context_length, f"Prompt {number} of {len(prompts)}")
        for number, (prompt, limit) in enumerate(zip(prompts, most, strict=True), 1)
    ]


@dataclass(frozen=True)
class Rows:
    """What is known of each completion being sampled, (R,) or (R, T + 1) for at most T new tokens.

    Finished rows may stay a while: what they go on sampling is written to the column after their last token.
    """

    keys: Tensor
    token_budgets: Tensor
    counts: Tensor
    """Tokens sampled so far."""
    done: Tensor
    last: Tensor
    """The token just sampled."""
    tokens: Tensor
    logprobs: Tensor

    @classmethod
    def begin(cls, owners: Sequence[Owner], device: torch.device) -> Rows:
        """Rows without a token."""
        keys = [stream_key(each.request.prompt.ids, each.sample, each.request.sampling.seed) for each in owners]
        token_budgets = [each.request.token_budget for each in owners]
        empty = torch.zeros(len(owners), dtype=torch.long, device=device)
        width = max(token_budgets) + 1
        return cls(
            keys=torch.tensor(keys, device=device),
            token_budgets=torch.tensor(token_budgets, device=device),
            counts=empty,
            done=empty.bool(),
            last=empty,
            tokens=empty.new_zeros(len(owners), width),
            logprobs=torch.zeros(len(owners), width, device=device),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, indices: Tensor) -> Rows:
        """The rows at `indices`."""
        return Rows(*(getattr(self, field.name)[indices] for field in fields(self)))

    def above(self, other: Rows) -> Rows:
        """These rows, then those of `other`."""
        return Rows(*(_stack(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))

    def with_sampled(self, tokens: Tensor, logprobs: Tensor, ends: Tensor) -> Rows:
        """The rows with one more token, (R,) each; `ends` says which of them end their completion."""
        place = self.counts.unsqueeze(-1)
        counts = self.counts + ~self.done
        return Rows(
            keys=self.keys,
            token_budgets=self.token_budgets,
            counts=counts,
            done=self.done | ends | (counts >= self.token_budgets),
            last=tokens,
            tokens=self.tokens.scatter_(-1, place, tokens.unsqueeze(-1)),
            logprobs=self.logprobs.scatter_(-1, place, logprobs.unsqueeze(-1)),
        )


class DecodingBatch:
    """Rows, their cache, whose they are, and how each is sampled."""

    def __init__(self, model: LanguageModel, decoder: RowDecoder, rows: Rows, owners: list[Owner]) -> None:
        self.rows = rows
        self.owners = owners
        self._model = model
        self._decoder = decoder
        self._rules = SamplingRules(model)
        self._end_ids = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        self._look_at_owners()

    @property
    def flexible(self) -> bool:
        """Whether rows can join."""
        return self._decoder.flexible

    def size(self) -> Demand:
        """Rows, tokens in the cache of each, and the most that are still to come to one."""
        return Demand(len(self.rows), self._decoder.width, int((self.rows.token_budgets - self.rows.counts).max()))

    def step(self) -> int:
        """Sample one more token for every row; how many of the rows were unfinished."""
        return self.sample(self._decoder.step(self.rows.last))

    def sample(self, logits: Tensor) -> int:
        """Sample the next token of every row from logits (R, V); how many of the rows were unfinished."""
        rows, filters = self.rows, self._filters
        random = uniforms(rows.keys, rows.counts)
        allowed = self._rules.allowed(logits, rows.counts, filters.min_new_tokens)
        tokens, logprobs = sample_scored(allowed, random, filters.temperature, filters.top_k, filters.top_p)
        check_finite(logprobs)
        ends = (tokens.unsqueeze(-1) == self._end_ids).any(-1)
        if self._has_text:
            ends = ends | self._follow(tokens, ends | rows.done)
        self.rows = rows.with_sampled(tokens, logprobs, ends)
        return len(rows) - int(rows.done.sum())

    def finished(self) -> list[int]:
        """Rows that have all their tokens, in order."""
        found: list[int] = self.rows.done.nonzero().squeeze(-1).tolist()
        return found

    def drawn(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Tokens of these rows so far, and their log-probabilities."""
        some = self.rows.at(torch.tensor(rows, dtype=torch.long, device=self._model.device))
        columns = (some.counts.tolist(), some.tokens.tolist(), some.logprobs.tolist())
        return [(ids[:count], logprobs[:count]) for count, ids, logprobs in zip(*columns, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        staying = torch.tensor(rows, device=self._model.device)
        self._decoder.keep(staying)
        self.rows = self.rows.at(staying)
        self.owners = [self.owners[row] for row in rows]
        self._look_at_owners()

    def concat(self, other: DecodingBatch) -> None:
        """Add the rows of `other` below these."""
        self._decoder.concat(other._decoder)
        self.rows = self.rows.above(other.rows)
        self.owners = self.owners + other.owners
        self._look_at_owners()

    def _look_at_owners(self) -> None:
        """Note what is the same at every step until rows come or go."""
        self._filters = Filters.of([owner.request.sampling for owner in self.owners], self._model.device)
        self._has_text = any(owner.text is not None for owner in self.owners)

    def _follow(self, tokens: Tensor, without_text: Tensor) -> Tensor:
        """Add the tokens to the rows' texts, but where there is none to add; which rows a stop string ends, (R,)."""
        stopped = [False] * len(self.owners)
        columns = tokens.tolist(), without_text.tolist(), self.owners
        for row, (token, skip, owner) in enumerate(zip(*columns, strict=True)):
            if owner.text is not None and not skip:
                owner.text.add(token)
                stopped[row] = owner.text.stopped
        return torch.tensor(stopped, device=tokens.device)


class SamplingRules:
    """Which tokens of a model may be sampled."""

    def __init__(self, model: LanguageModel) -> None:
        self._end_ids = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        self._never = torch.tensor(
            sorted({*model.suppressed_ids, *model.unknown_ids}), dtype=torch.long, device=model.device
        )

    def allowed(self, logits: Tensor, counts: Tensor, min_new_tokens: int | Tensor = 0) -> Tensor:
        """Logits (R, V) with -inf for what no answer has, and for the end while a row has too few tokens.

        Never in an answer are padding and rows that stand for no token; `counts` (R,) are the tokens of the rows.
        `min_new_tokens` is one number or (R,). The logits are changed in place.
        """
        vocabulary = logits.shape[-1]
        logits[:, self._never[self._never < vocabulary]] = -torch.inf
        if len(self._end_ids) and (isinstance(min_new_tokens, Tensor) or min_new_tokens):
            early = (counts < min_new_tokens).nonzero()
            logits[early, self._end_ids[self._end_ids < vocabulary]] = -torch.inf
        return logits


def check_finite(logprobs: Tensor) -> None:
    """Raise LmflowError where sampled tokens have no probability, which only broken weights bring about."""
    if not logprobs.isfinite().all():
        raise LmflowError("The model's logits are not finite numbers: its weights are damaged or have diverged.")


def _stack(above: Tensor, below: Tensor) -> Tensor:
    """Rows of one tensor over those of another, the narrower filled with zeros on the right."""
    if above.dim() == 1:
        return torch.cat([above, below])
    width = max(above.shape[1], below.shape[1])
    return torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (above, below)])
