"""Drawing completions with proposals: rows leave the batch as they finish, and waiting prompts take their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.inference.decoder import eval_mode
from lmflow.inference.engine import only_sampling
from lmflow.inference.generate import LEAVE_SHARE, SamplingRules, StepOutput, completion_budgets, text_maker
from lmflow.inference.sampling import filtered_logprobs, uniforms
from lmflow.inference.scheduler import admit, longest_first
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Sampling
from lmflow_speculative import acceptance
from lmflow_speculative.blocks import BlockDecoder
from lmflow_speculative.lengths import DraftLength
from lmflow_speculative.proposing import DraftProposer, LookupProposer, Proposal, Proposer
from lmflow_speculative.rows import Keys, Row
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


@dataclass
class Batch:
    """Rows, and what has read them."""

    rows: list[Row]
    target: BlockDecoder
    proposer: Proposer


@torch.no_grad()
def speculate(
    request: GenerateRequest,
    budget: int,
    plan: Plan,
    statistics: Statistics,
    new_text: Callable[[], TextStream] | None = None,
) -> Generator[StepOutput, None, None]:
    """Sample `n` completions for each prompt; numbers and `new_text` as in `generate_completions` of the core.

    Gradients are off while this runs, and the models are in eval mode.
    """
    model, prompts, sampling = request.model, request.prompts, only_sampling(request)
    if new_text is None and sampling.stop:
        new_text = text_maker(model, sampling)
    work = Speculation(model, sampling, plan, statistics)
    token_budgets = completion_budgets(prompts, sampling.max_new_tokens, model.context_length)
    lengths = [len(prompt.ids) for prompt in prompts]
    spaces = [room + plan.longest for room in token_budgets]  # proposals that are refused take room too
    queue = longest_first(lengths)
    batch: Batch | None = None
    with eval_mode(model.module):
        while queue or batch is not None:
            running = (0, 0, 0) if batch is None else work.size(batch)
            chosen = admit(queue, lengths, spaces, sampling.n, budget, running)
            if chosen:
                rows = [
                    Row(
                        number=index * sampling.n + sample,
                        history=list(prompts[index].ids),
                        prompt_length=lengths[index],
                        room=token_budgets[index],
                        keys=Keys.of(prompts[index], sample, sampling.seed),
                        length=plan.new_length(),
                        text=new_text() if new_text is not None else None,
                    )
                    for index in chosen
                    for sample in range(sampling.n)
                ]
                entering, tokens = work.enter([prompts[index] for index in chosen], rows)
                batch = entering if batch is None else concatenated(batch, entering)
            else:
                assert batch is not None  # an empty batch admits at least one prompt
                tokens = work.step(batch)
            finished = []
            if sum(row.done for row in batch.rows) * LEAVE_SHARE >= len(batch.rows):
                finished = [
                    (row.number, work.rules.completion(row.ids, row.logprobs, row.text))
                    for row in batch.rows
                    if row.done
                ]
                batch = unfinished(batch)
            yield StepOutput(tokens, finished)


class Speculation:
    """One call's models and options, and the steps that draw with them."""

    def __init__(self, model: LanguageModel, sampling: Sampling, plan: Plan, statistics: Statistics) -> None:
        self.rules = SamplingRules(model, sampling)
        self._model = model
        self._sampling = sampling
        self._plan = plan
        self._statistics = statistics

    def size(self, batch: Batch) -> tuple[int, int, int]:
        """Rows, columns in the cache of each, and the most that are still to come to one."""
        room = max(row.room - row.drawn for row in batch.rows)
        return len(batch.rows), batch.target.width, room + self._plan.longest

    def enter(self, prompts: Sequence[Prompt], rows: list[Row]) -> tuple[Batch, int]:
        """Read prompts and draw the first token of their rows; how many tokens that were."""
        target = BlockDecoder(self._model.module, self._statistics.target)
        logits = target.prefill(prompts, self._sampling.n)
        proposer: Proposer
        if self._plan.draft is None:
            proposer = LookupProposer(rows, self._plan.lookup, self._model.suppressed_ids)
        else:
            proposer = DraftProposer(self._plan.draft, logits.shape[-1], self.rules, self._sampling, self._statistics)
            proposer.prefill(prompts, self._sampling.n)
        batch = Batch(rows, target, proposer)
        return batch, self._take(batch, logits.unsqueeze(1), Proposal([[] for _ in rows], [[] for _ in rows]))

    def step(self, batch: Batch) -> int:
        """Propose, judge, and keep what is right: how many tokens were drawn."""
        rows, longest = batch.rows, self._plan.longest
        # Of a block one token comes from the target itself, so the last a row has room for is never proposed.
        limits = [0 if row.done else min(longest, row.room - row.drawn - 1) for row in rows]
        proposal = batch.proposer.propose(rows, limits)
        blocks = [
            [] if row.done else [row.history[-1], *tokens] for row, tokens in zip(rows, proposal.tokens, strict=True)
        ]
        tokens = self._take(batch, batch.target.read(blocks), proposal)
        read = [len(row.history) - 1 for row in rows]
        batch.target.crop(read)
        batch.proposer.crop(read)
        return tokens

    def _take(self, batch: Batch, logits: Tensor, proposal: Proposal) -> int:
        """Judge the proposals by the target's logits (R, K + 1, V) and extend the rows; the number of tokens drawn."""
        rows = batch.rows
        verification, tokens, logprobs = self._verify(rows, logits, proposal)
        total = 0
        columns = verification.accepted.tolist(), tokens.tolist(), logprobs.tolist(), proposal.confidences
        for row, accepted, ids, scores, confidences in zip(rows, *columns, strict=True):
            if row.done:
                continue
            taken = row.extend(ids[: accepted + 1], scores[: accepted + 1], self._model.end_ids)
            total += taken
            # Proposals after the one that ended the completion were neither right nor wrong.
            judged = len(confidences) if taken > accepted else taken
            self._statistics.count_block(judged, min(accepted, judged), taken)
            row.length.learn(confidences[:judged], min(accepted, judged))
        return total

    def _verify(
        self, rows: Sequence[Row], logits: Tensor, proposal: Proposal
    ) -> tuple[acceptance.Verification, Tensor, Tensor]:
        """The verdict, the tokens that stay in their places, and their log-probabilities, (R, K + 1) each."""
        sampling, device = self._sampling, logits.device
        height, places, vocabulary = logits.shape
        proposed = torch.tensor([[*ids, *[0] * (places - 1 - len(ids))] for ids in proposal.tokens], device=device)
        proposed = proposed.long().view(height, places - 1)
        counts = torch.tensor([len(ids) for ids in proposal.tokens], device=device)
        drawn = torch.tensor([row.drawn for row in rows], device=device).unsqueeze(-1) + torch.arange(
            places, device=device
        )
        flat = self.rules.allowed(logits.reshape(height * places, vocabulary), drawn.reshape(-1))
        if sampling.temperature == 0:
            logprobs = flat.log_softmax(-1).view(logits.shape)
            verification = acceptance.judge_greedy(flat.argmax(-1).view(height, places), proposed, counts)
        else:
            logprobs = filtered_logprobs(flat, sampling.temperature, sampling.top_k, sampling.top_p).view(logits.shape)
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
        return verification, tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def concatenated(batch: Batch, other: Batch) -> Batch:
    """The batch with the rows of `other` below its own."""
    batch.target.concat(other.target)
    batch.proposer.concat(other.proposer)
    return Batch(batch.rows + other.rows, batch.target, batch.proposer)


def unfinished(batch: Batch) -> Batch | None:
    """The batch without its finished rows, None if there are no others."""
    staying = [index for index, row in enumerate(batch.rows) if not row.done]
    if not staying:
        return None
    batch.target.keep(staying)
    batch.proposer.keep(staying)
    return Batch([batch.rows[index] for index in staying], batch.target, batch.proposer)
