"""Requests that share forward passes: they join the batch as it has room, and leave it as they finish."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import nn

from lmflow.components import Engine, Update
from lmflow.components.engine import completion_budget
from lmflow.errors import LmflowError
from lmflow.inference.decoder import eval_mode
from lmflow.inference.scheduler import Demand, admit
from lmflow.inference.text_stream import TextStream
from lmflow.inference.types import Completion, FinishReason, Sampling

if TYPE_CHECKING:
    from lmflow.data.sample import Prompt
    from lmflow.models.language_model import LanguageModel

LEAVE_SHARE = 8
"""Finished rows leave the batch once they are one in so many: leaving copies the cache, staying computes in vain."""


@dataclass(eq=False, slots=True)
class Request:
    """What was submitted, and how much of it is still to be finished."""

    ticket: int
    prompt: Prompt
    sampling: Sampling
    follow: bool
    token_budget: int
    unfinished: int
    """Rows that have not left."""

    @property
    def rows(self) -> int:
        """Completions that are sampled: greedy ones of one prompt are all the same, so one is enough."""
        return 1 if self.sampling.temperature == 0 else self.sampling.n

    @property
    def copies(self) -> int:
        """How many completions each row stands for."""
        return self.sampling.n // self.rows


@dataclass(eq=False, slots=True)
class Owner:
    """Whose a row of a batch is."""

    request: Request
    sample: int
    text: TextStream | None
    """What follows its text; None where the text is needed at the end alone."""
    given: int = 0
    """Tokens that updates told of."""


class Batch(Protocol):
    """Rows that grow together, one for each of `owners`."""

    @property
    def owners(self) -> Sequence[Owner]:
        """Whose the rows are."""

    @property
    def flexible(self) -> bool:
        """Whether rows can join."""

    def size(self) -> Demand:
        """What the rows take."""

    def step(self) -> int:
        """Do a forward pass; how many tokens it brought to rows that were unfinished."""

    def finished(self) -> list[int]:
        """Rows that have all their tokens, in order."""

    def drawn(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Tokens of these rows so far, and their log-probabilities."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, of which there is one at least."""


B = TypeVar("B", bound=Batch)


class PassEngine(Engine, Generic[B]):
    """An engine that works by forward passes over one batch, whose key-value cache has at most `budget` tokens.

    Requests begin in the order they came, as soon as there is room; models that keep sliding windows or recurrent
    states let none in before the batch is empty.
    """

    def __init__(self, model: LanguageModel, budget: int) -> None:
        super().__init__(model)
        self._budget = budget
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._batch: B | None = None
        self._version = self.version()
        self._parts: list[nn.Module] = []

    @abstractmethod
    def _begin(self, prompts: Sequence[Prompt], repeats: Sequence[int], owners: list[Owner]) -> tuple[B, int]:
        """Read prompts, each for `repeats` rows, whose owners are given in turn; the batch and how many tokens came."""

    @abstractmethod
    def _join(self, batch: B, entering: B) -> None:
        """Add the rows of another batch below those of `batch`."""

    def _add(self, ticket: int, prompt: Prompt, sampling: Sampling, follow: bool) -> None:
        budget = completion_budget(len(prompt.ids), sampling.max_new_tokens, self.model.context_length)
        request = Request(ticket, prompt, sampling, follow, budget, 0)
        request.unfinished = request.rows
        self._waiting.append(request)

    @torch.no_grad()
    def step(self) -> list[Update]:
        """Do one forward pass, of requests that begin or of those that run, and let finished rows leave."""
        if self.idle:
            return []
        self._check_version()
        with eval_mode(self.model.module, self._parts):
            chosen = self._admit()
            self.tokens += self._enter(chosen) if chosen else self._running_batch().step()
        batch = self._running_batch()
        finished = batch.finished()
        followed = any(request.follow for request in self._running.values())
        updates = list(self._pieces(batch, set(finished))) if followed else []
        urgent = followed and any(batch.owners[row].request.follow for row in finished)
        if len(finished) * LEAVE_SHARE >= len(batch.owners) or urgent:
            updates += self._leave(batch, finished)
        return updates

    def cancel(self, ticket: int) -> None:
        """Forget a request; the others of its batch go on."""
        self._waiting = deque(request for request in self._waiting if request.ticket != ticket)
        request = self._running.pop(ticket, None)
        if request is not None:
            batch = self._running_batch()
            self._keep(batch, [row for row, owner in enumerate(batch.owners) if owner.request is not request])

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._waiting and self._batch is None

    def close(self) -> None:
        """Forget all requests, and free the cache."""
        self._waiting.clear()
        self._running.clear()
        self._batch = None

    def demand(self, request: Request) -> Demand:
        """What decoding a request takes."""
        return Demand(request.rows, len(request.prompt.ids), request.token_budget)

    def version(self) -> object:
        """What changes with the weights that completions depend on."""
        return self.model.version

    def _check_version(self) -> None:
        """Refuse to go on with a cache that other weights computed."""
        if self._batch is None:
            self._version = self.version()
            self._parts = list(self.model.module.modules())
        elif self.version() != self._version:
            raise LmflowError(
                f"The weights changed while {len(self._running)} requests were being answered. Finish or cancel them "
                "before training goes on."
            )

    def _admit(self) -> list[Request]:
        batch = self._batch
        if not self._waiting or not (batch is None or batch.flexible):
            return []
        running = batch.size() if batch is not None else None
        count = admit((self.demand(request) for request in self._waiting), self._budget, running)
        return list(islice(self._waiting, count))

    def _enter(self, requests: Sequence[Request]) -> int:
        """Begin requests, beside those that run; how many tokens came."""
        owners = [Owner(each, sample, self._text(each)) for each in requests for sample in range(each.rows)]
        entering, tokens = self._begin([each.prompt for each in requests], [each.rows for each in requests], owners)
        for request in requests:  # only now: where reading them fails they still wait, and can be cancelled
            self._waiting.remove(request)
            self._running[request.ticket] = request
        if self._batch is None:
            self._batch = entering
        else:
            self._join(self._batch, entering)
        return tokens

    def _text(self, request: Request) -> TextStream | None:
        stops = request.sampling.stop
        return TextStream(self.model.decode, stops) if stops or request.follow else None

    def _running_batch(self) -> B:
        assert self._batch is not None  # an empty batch admits at least one request
        return self._batch

    def _keep(self, batch: B, rows: Sequence[int]) -> None:
        if not rows:
            self._batch = None
        elif len(rows) < len(batch.owners):
            batch.keep(rows)

    def _pieces(self, batch: B, finished: set[int]) -> list[Update]:
        """What came to rows that are followed and go on."""
        rows = [row for row, each in enumerate(batch.owners) if each.request.follow and row not in finished]
        updates = []
        for row, (ids, logprobs) in zip(rows, batch.drawn(rows), strict=True):
            owner = batch.owners[row]
            text = owner.text.take() if owner.text is not None else ""
            updates.append(_update(owner, ids, logprobs, text, None))
        return [each for each in chain.from_iterable(updates) if each.ids]

    def _leave(self, batch: B, rows: Sequence[int]) -> list[Update]:
        """The completions of finished rows, which leave the batch."""
        updates = []
        for row, (ids, logprobs) in zip(rows, batch.drawn(rows), strict=True):
            owner = batch.owners[row]
            completion = finish(self.model, ids, logprobs, owner.text)
            text = owner.text.take() if owner.text is not None and owner.request.follow else completion.text
            updates += _update(owner, ids, logprobs, text, completion)
            owner.request.unfinished -= 1
            if not owner.request.unfinished:
                del self._running[owner.request.ticket]
        gone = set(rows)
        self._keep(batch, [row for row in range(len(batch.owners)) if row not in gone])
        return updates


def _update(
    owner: Owner, ids: Sequence[int], logprobs: Sequence[float], text: str, completion: Completion | None
) -> list[Update]:
    """What is new to a row, for each of the completions it stands for."""
    request, start = owner.request, owner.given
    owner.given = len(ids)
    first = Update(request.ticket, owner.sample, tuple(ids[start:]), tuple(logprobs[start:]), text, completion)
    return [first, *(replace(first, sample=copy) for copy in range(1, request.copies))]


def finish(model: LanguageModel, ids: list[int], logprobs: list[float], followed: TextStream | None) -> Completion:
    """A finished completion, with the stream that followed its text if one did."""
    ended = ids[-1] in model.end_ids
    reason: FinishReason = "eos" if ended else "length"
    if followed is None:
        text = model.decode(ids[:-1] if ended else ids)
    else:
        followed.finish()
        text = followed.text
        reason = "stop" if followed.stopped else reason
    return Completion(tuple(ids), text, tuple(logprobs), reason)
