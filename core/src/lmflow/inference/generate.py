"""Drawing completions for many prompts: rows leave the batch as they finish, and waiting prompts take their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmflow.data.sample import Prompt
from lmflow.errors import DataError, LmflowError
from lmflow.inference.decoder import Decoder, eval_mode
from lmflow.inference.sampling import sample_scored, stream_key, uniforms
from lmflow.inference.scheduler import admit, longest_first
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Completion, FinishReason, Sampling

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

LEAVE_SHARE = 8
"""Finished rows leave the batch once they are one in so many: leaving copies the cache, staying computes in vain."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one forward pass brought: how many tokens, and the completions that left, each with its number."""

    tokens: int
    finished: list[tuple[int, Completion]]


@torch.no_grad()
def generate_completions(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    budget: int,
    new_text: Callable[[], TextStream] | None = None,
) -> Generator[StepOutput, None, None]:
    """Draw `sampling.n` completions for each prompt, with at most `budget` tokens in the cache.

    Completion j of prompt i has the number i * n + j. `new_text` makes what follows a row's text as it is drawn; with
    none, text is followed only for stop strings. Gradients are off while this runs, and the model is in eval mode.
    """
    if new_text is None and sampling.stop:
        new_text = text_maker(model, sampling)
    n = sampling.n
    token_budgets = completion_budgets(prompts, sampling.max_new_tokens, model.context_length)
    lengths = [len(prompt.ids) for prompt in prompts]
    queue = longest_first(lengths)
    rules = SamplingRules(model, sampling)
    batch: DecodingBatch | None = None
    with eval_mode(model.module):
        while queue or batch is not None:
            running = (0, 0, 0) if batch is None else batch.size()
            chosen = (
                admit(queue, lengths, token_budgets, n, budget, running)
                if batch is None or batch.decoder.flexible
                else []
            )
            if chosen:
                decoder = Decoder(model.module)
                logits = decoder.prefill([prompts[index] for index in chosen], n)
                rows = Rows.begin(prompts, chosen, token_budgets, sampling, model.device)
                texts = [new_text() for _ in range(len(rows))] if new_text is not None else []
                entering = DecodingBatch(decoder, rows, texts)
                tokens = rules.sample(entering, logits)
                batch = entering if batch is None else batch.concatenated(entering)
            else:
                assert batch is not None  # an empty batch admits at least one prompt
                tokens = rules.sample(batch, batch.decoder.step(batch.rows.last))
            finished = []
            if int(batch.rows.done.sum()) * LEAVE_SHARE >= len(batch.rows):
                finished = rules.completions(batch)
                batch = batch.unfinished()
            yield StepOutput(tokens, finished)


def complete_prompts(
    passes: Iterable[StepOutput], n: int, progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, list[Completion]]]:
    """Yield a prompt's index and its n completions when the last of them is drawn; `progress` as in `generate`."""
    waiting: dict[int, dict[int, Completion]] = {}
    for drawn in passes:
        for number, completion in drawn.finished:
            index, sample = divmod(number, n)
            of_prompt = waiting.setdefault(index, {})
            of_prompt[sample] = completion
            if len(of_prompt) == n:
                del waiting[index]
                yield index, [of_prompt[j] for j in range(n)]
        if progress is not None:
            progress(drawn.tokens)


def completion_budgets(prompts: Sequence[Prompt], new_tokens: int, context_length: int | None) -> list[int]:
    """Tokens each prompt's completion may have: `new_tokens`, or fewer where the model's context ends before.

    Raises DataError for a prompt without a token, or without room for one more.
    """
    token_budgets = []
    for number, prompt in enumerate(prompts, 1):
        length = len(prompt.ids)
        if not length:
            raise DataError(f"Prompt {number} of {len(prompts)} is empty; there is nothing to continue.")
        if context_length is not None and length >= context_length:
            raise DataError(
                f"Prompt {number} of {len(prompts)} has {length} tokens; the model's context is {context_length}, "
                "which leaves no room for an answer. Shorten it."
            )
        token_budgets.append(new_tokens if context_length is None else min(new_tokens, context_length - length))
    return token_budgets


@dataclass(frozen=True)
class Rows:
    """What is known of each completion being drawn, (R,) or (R, T + 1) for at most T new tokens.

    Finished rows may stay a while: what they go on drawing is written to the column after their last token.
    """

    numbers: Tensor
    keys: Tensor
    token_budgets: Tensor
    counts: Tensor
    """Tokens drawn so far."""
    done: Tensor
    last: Tensor
    """The token just drawn."""
    tokens: Tensor
    logprobs: Tensor

    @classmethod
    def begin(
        cls,
        prompts: Sequence[Prompt],
        chosen: Sequence[int],
        token_budgets: Sequence[int],
        sampling: Sampling,
        device: torch.device,
    ) -> Rows:
        """Rows without a token: n for each chosen prompt, in turn."""
        names = [(index, sample) for index in chosen for sample in range(sampling.n)]
        keys = [stream_key(prompts[index].ids, sample, sampling.seed) for index, sample in names]
        empty = torch.zeros(len(names), dtype=torch.long, device=device)
        width = max(token_budgets[index] for index in chosen) + 1
        return cls(
            numbers=torch.tensor([index * sampling.n + sample for index, sample in names], device=device),
            keys=torch.tensor(keys, device=device),
            token_budgets=torch.tensor([token_budgets[index] for index, _ in names], device=device),
            counts=empty,
            done=empty.bool(),
            last=empty,
            tokens=empty.new_zeros(len(names), width),
            logprobs=torch.zeros(len(names), width, device=device),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, indices: Tensor) -> Rows:
        """The rows at `indices`."""
        return Rows(*(getattr(self, field.name)[indices] for field in fields(self)))

    def above(self, other: Rows) -> Rows:
        """These rows, then those of `other`."""
        return Rows(*(_stack(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))

    def with_drawn(self, tokens: Tensor, logprobs: Tensor, ends: Tensor) -> Rows:
        """The rows with one more token, (R,) each; `ends` says which of them end their completion."""
        place = self.counts.unsqueeze(-1)
        counts = self.counts + ~self.done
        return Rows(
            numbers=self.numbers,
            keys=self.keys,
            token_budgets=self.token_budgets,
            counts=counts,
            done=self.done | ends | (counts >= self.token_budgets),
            last=tokens,
            tokens=self.tokens.scatter_(-1, place, tokens.unsqueeze(-1)),
            logprobs=self.logprobs.scatter_(-1, place, logprobs.unsqueeze(-1)),
        )


@dataclass
class DecodingBatch:
    """Rows, their cache, and where text is followed one stream for each."""

    decoder: Decoder
    rows: Rows
    texts: list[TextStream]

    def size(self) -> tuple[int, int, int]:
        """Rows, tokens in the cache of each, and the most that are still to come to one."""
        return len(self.rows), self.decoder.width, int((self.rows.token_budgets - self.rows.counts).max())

    def concatenated(self, other: DecodingBatch) -> DecodingBatch:
        """This batch with the rows of `other` below its own."""
        self.decoder.concat(other.decoder)
        return DecodingBatch(self.decoder, self.rows.above(other.rows), self.texts + other.texts)

    def unfinished(self) -> DecodingBatch | None:
        """The batch without its finished rows, None if there are no others."""
        staying = (~self.rows.done).nonzero().squeeze(-1)
        if not len(staying):
            return None
        self.decoder.keep(staying)
        texts = [self.texts[row] for row in staying.tolist()] if self.texts else []
        return DecodingBatch(self.decoder, self.rows.at(staying), texts)


class SamplingRules:
    """How one call draws: its sampling options, and which tokens end a completion or are never drawn."""

    def __init__(self, model: LanguageModel, sampling: Sampling) -> None:
        self._model = model
        self._sampling = sampling
        self._end_ids = torch.tensor(model.end_ids, dtype=torch.long, device=model.device)
        self._never = model.suppressed_ids

    def sample(self, batch: DecodingBatch, logits: Tensor) -> int:
        """Draw the next token of every row from logits (R, V); how many of the rows were unfinished."""
        sampling, rows = self._sampling, batch.rows
        random = uniforms(rows.keys, rows.counts)
        tokens, logprobs = sample_scored(
            self.allowed(logits, rows.counts), random, sampling.temperature, sampling.top_k, sampling.top_p
        )
        check_finite(logprobs)
        ends = (tokens.unsqueeze(-1) == self._end_ids).any(-1)
        if batch.texts:
            ends = ends | _follow(batch, tokens, ends | rows.done)
        batch.rows = rows.with_drawn(tokens, logprobs, ends)
        return len(rows) - int(rows.done.sum())

    def allowed(self, logits: Tensor, counts: Tensor) -> Tensor:
        """Logits (R, V) with -inf for padding, and for the end while a row has too few tokens, `counts` (R,).

        They are changed in place.
        """
        vocabulary = logits.shape[-1]
        logits[:, [token for token in self._never if token < vocabulary]] = -torch.inf
        if self._sampling.min_new_tokens and len(self._end_ids):
            early = (counts < self._sampling.min_new_tokens).nonzero()
            logits[early, self._end_ids[self._end_ids < vocabulary]] = -torch.inf
        return logits

    def completions(self, batch: DecodingBatch) -> list[tuple[int, Completion]]:
        """The finished rows as completions, each with its number."""
        gone = batch.rows.done.nonzero().squeeze(-1)
        rows = batch.rows.at(gone)
        texts = [batch.texts[row] for row in gone.tolist()] if batch.texts else [None] * len(rows)
        columns = (rows.numbers, rows.counts, rows.tokens, rows.logprobs)
        return [
            (number, self.completion(ids[:count], logprobs[:count], text))
            for number, count, ids, logprobs, text in zip(*(each.tolist() for each in columns), texts, strict=True)
        ]

    def completion(self, ids: list[int], logprobs: list[float], followed: TextStream | None) -> Completion:
        """A finished completion, with the stream that followed its text if one did."""
        ended = ids[-1] in self._model.end_ids
        reason: FinishReason = "eos" if ended else "length"
        if followed is None:
            text = self._model.decode(ids[:-1] if ended else ids)
        else:
            followed.finish()
            text = followed.text
            reason = "stop" if followed.stopped else reason
        return Completion(tuple(ids), text, tuple(logprobs), reason)


def check_finite(logprobs: Tensor) -> None:
    """Raise LmflowError where drawn tokens have no probability, which only broken weights bring about."""
    if not logprobs.isfinite().all():
        raise LmflowError("The model's logits are not finite numbers: its weights are damaged or have diverged.")


def text_maker(model: LanguageModel, sampling: Sampling) -> Callable[[], TextStream]:
    """Makes what follows a row's text for its stop strings."""
    return lambda: TextStream(model.decode, sampling.stop)


def _follow(batch: DecodingBatch, tokens: Tensor, without_text: Tensor) -> Tensor:
    """Add the tokens to the rows' texts, but where there is none to add; which rows a stop string ends, (R,)."""
    stopped = [False] * len(batch.texts)
    for row, (token, skip) in enumerate(zip(tokens.tolist(), without_text.tolist(), strict=True)):
        if not skip:
            batch.texts[row].add(token)
            stopped[row] = batch.texts[row].stopped
    return torch.tensor(stopped, device=tokens.device)


def _stack(above: Tensor, below: Tensor) -> Tensor:
    """Rows of one tensor over those of another, the narrower filled with zeros on the right."""
    if above.dim() == 1:
        return torch.cat([above, below])
    width = max(above.shape[1], below.shape[1])
    return torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (above, below)])
