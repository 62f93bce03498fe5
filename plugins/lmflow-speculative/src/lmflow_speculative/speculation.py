"""Sampling with proposals: an engine whose forward passes bring several tokens to a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmflow.components import Update
from lmflow.data.sample import Prompt
from lmflow.inference.batching import Owner, PassEngine, Request
from lmflow.inference.decoder import eval_mode
from lmflow.inference.generate import SamplingRules
from lmflow.inference.sampling import Filters, filtered_logprobs, scored, uniforms
from lmflow.inference.scheduler import Demand
from lmflow.inference.types import Sampling
from lmflow_speculative import acceptance
from lmflow_speculative.blocks import BlockDecoder
from lmflow_speculative.drafting import check_prompt
from lmflow_speculative.lengths import DraftLength
from lmflow_speculative.proposing import DraftProposer, LookupProposer, Proposal, Proposer
from lmflow_speculative.rows import Row
from lmflow_speculative.statistics import Statistics

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


@dataclass(frozen=True)
class Plan:
    """How to propose: from `draft`, or where that is None by looking up runs of at most `lookup` tokens."""

    draft: LanguageModel | None
    lookup: int
    longest: int
    """Most tokens proposed at once."""
    new_length: Callable[[], DraftLength]


class SpeculativeEngine(PassEngine["SpeculativeBatch"]):
    """An engine that reads proposals together, and keeps of each block what is right."""

    def __init__(self, model: LanguageModel, budget: int, plan: Plan, statistics: Statistics) -> None:
        self._plan = plan
        self._statistics = statistics
        super().__init__(model, budget)

    def check(self, prompt: Prompt, sampling: Sampling, which: str = "The prompt") -> None:
        """Raise DataError for a prompt that the model or the draft cannot read."""
        super().check(prompt, sampling, which)
        if self._plan.draft is not None:
            check_prompt(self._plan.draft, prompt, which)

    def demand(self, request: Request) -> Demand:
        """What decoding a request takes; proposals that are refused take room too."""
        plain = super().demand(request)
        return Demand(plain.rows, plain.width, plain.to_come + self._plan.longest)

    def version(self) -> object:
        """The weights of both models: the draft's decide which of the possible tokens is sampled."""
        draft = self._plan.draft
        return super().version(), None if draft is None else draft.version

    def step(self) -> list[Update]:
        """Do a pass of the model, after those of the draft, which is in eval mode as well."""
        if self._plan.draft is None:
            return super().step()
        with eval_mode(self._plan.draft.module):
            return super().step()

    def _begin(
        self, prompts: Sequence[Prompt], repeats: Sequence[int], owners: list[Owner]
    ) -> tuple[SpeculativeBatch, int]:
        plan, statistics = self._plan, self._statistics
        rows = [Row.begin(owner, plan.new_length()) for owner in owners]
        target = BlockDecoder(self.model.module, statistics.target)
        logits = target.prefill(prompts, repeats)
        proposer: Proposer
        if plan.draft is None:
            proposer = LookupProposer(rows, plan.lookup, self.model.suppressed_ids)
        else:
            proposer = DraftProposer(plan.draft, logits.shape[-1], SamplingRules(self.model), statistics)
            proposer.prefill(prompts, repeats)
        batch = SpeculativeBatch(self.model, rows, target, proposer, plan.longest, statistics)
        return batch, batch.take(logits.unsqueeze(1), Proposal([[] for _ in rows], [[] for _ in rows]))

    def _join(self, batch: SpeculativeBatch, entering: SpeculativeBatch) -> None:
        batch.concat(entering)


class SpeculativeBatch:
    """Rows, and what has read them."""

    flexible = True

    def __init__(
        self,
        model: LanguageModel,
        rows: list[Row],
        target: BlockDecoder,
        proposer: Proposer,
        longest: int,
        statistics: Statistics,
    ) -> None:
        self.rows = rows
        self._model = model
        self._rules = SamplingRules(model)
        self._target = target
        self._proposer = proposer
        self._longest = longest
        self._statistics = statistics

    @property
    def owners(self) -> list[Owner]:
        """Whose the rows are."""
        return [row.owner for row in self.rows]

    def size(self) -> Demand:
        """Rows, columns in the cache of each, and the most that are still to come to one."""
        return Demand(len(self.rows), self._target.width, max(row.to_come for row in self.rows) + self._longest)

    def step(self) -> int:
        """Propose, verify, and keep what is right: how many tokens were sampled."""
        rows = self.rows
        # Of a block one token comes from the target itself, so the last a row has room for is never proposed.
        limits = [0 if row.done else min(self._longest, row.to_come - 1) for row in rows]
        proposal = self._proposer.propose(rows, limits)
        blocks = [
            [] if row.done else [row.history[-1], *tokens] for row, tokens in zip(rows, proposal.tokens, strict=True)
        ]
        tokens = self.take(self._target.read(blocks), proposal)
        read = [len(row.history) - 1 for row in rows]
        self._target.crop(read)
        self._proposer.crop(read)
        return tokens

    def finished(self) -> list[int]:
        """Rows that have all their tokens, in order."""
        return [index for index, row in enumerate(self.rows) if row.done]

    def drawn(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Tokens of these rows so far, and their log-probabilities."""
        return [(self.rows[row].ids, self.rows[row].logprobs) for row in rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._target.keep(rows)
        self._proposer.keep(rows)
        self.rows = [self.rows[row] for row in rows]

    def concat(self, other: SpeculativeBatch) -> None:
        """Add the rows of `other` below these."""
        self._target.concat(other._target)
        self._proposer.concat(other._proposer)
        self.rows = self.rows + other.rows

    def take(self, logits: Tensor, proposal: Proposal) -> int:
        """Verify the proposals by the target's logits (R, K + 1, V) and extend the rows; the number of new tokens."""
        rows = self.rows
        verification, tokens, logprobs = self._verify(rows, logits, proposal)
        total = 0
        columns = verification.accepted.tolist(), tokens.tolist(), logprobs.tolist(), proposal.confidences
        for row, accepted, ids, scores, confidences in zip(rows, *columns, strict=True):
            if row.done:
                continue
            taken = row.extend(ids[: accepted + 1], scores[: accepted + 1], self._model.end_ids)
            total += taken
            # Proposals after the one that ended the completion were neither right nor wrong.
            verified = len(confidences) if taken > accepted else taken
            self._statistics.count_block(verified, min(accepted, verified), taken)
            row.length.learn(confidences[:verified], min(accepted, verified))
        return total

    def _verify(
        self, rows: Sequence[Row], logits: Tensor, proposal: Proposal
    ) -> tuple[acceptance.Verification, Tensor, Tensor]:
        """The verification, the tokens that stay in their places, and their log-probabilities, (R, K + 1) each."""
        device = logits.device
        filters = Filters.of([row.sampling for row in rows], device)
        height, places, vocabulary = logits.shape
        proposed = torch.tensor([[*ids, *[0] * (places - 1 - len(ids))] for ids in proposal.tokens], device=device)
        proposed = proposed.long().view(height, places - 1)
        counts = torch.tensor([len(ids) for ids in proposal.tokens], device=device)
        drawn = torch.tensor([row.drawn for row in rows], device=device).unsqueeze(-1) + torch.arange(
            places, device=device
        )
        each = filters.repeated(places)
        flat = self._rules.allowed(logits.reshape(height * places, vocabulary), drawn.reshape(-1), each.min_new_tokens)
        if filters.all_greedy:
            scores = flat.log_softmax(-1).view(logits.shape)
            verification = acceptance.verify_greedy(flat.argmax(-1).view(height, places), proposed, counts)
        else:
            # A greedy row beside others has all probability on one token, for which the rules come to the same result.
            logprobs = filtered_logprobs(flat, each.temperature, each.top_k, each.top_p)
            scores = scored(flat, logprobs, each.temperature).view(logits.shape)
            logprobs = logprobs.view(logits.shape)
            draw_keys = torch.tensor([row.keys.draw for row in rows], device=device).unsqueeze(-1)
            accept_keys = torch.tensor([row.keys.accept for row in rows], device=device).unsqueeze(-1)
            verification = acceptance.verify(
                logprobs,
                proposed,
                counts,
                proposal.logprobs,
                uniforms(accept_keys, drawn[:, :-1]),
                uniforms(draw_keys, drawn),
            )
        tokens = torch.nn.functional.pad(proposed, (0, 1))
        tokens = tokens.scatter(-1, verification.accepted.unsqueeze(-1), verification.following.unsqueeze(-1))
        return verification, tokens, scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
