"""Engines: requests to one model that join and leave while others run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lmflow.components.contexts import GenerateRequest
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.components.inferencer import Inferencer
    from lmflow.data.sample import Prompt
    from lmflow.inference.types import Completion, Sampling
    from lmflow.models.language_model import LanguageModel

PROMPTS_AT_A_TIME = 16
"""Prompts of a longer list that `Inferencer.generate` is given together: few, so that stopping loses little."""


@dataclass(frozen=True, slots=True)
class Update:
    """What a step brought to one completion of a request: everything new since the last update of it."""

    ticket: int
    """Which request, as `Engine.submit` numbered it."""
    sample: int
    """Which of its `n` completions, from 0."""
    ids: tuple[int, ...]
    """Tokens sampled, an end-of-text token included."""
    logprobs: tuple[float, ...]
    """Their log-probabilities, as in `Completion`."""
    text: str
    """Text that became final: put together, the pieces are the text of the completion."""
    completion: Completion | None = None
    """The whole completion once it is finished; no update of it follows."""


class Engine(ABC):
    """Requests to one model that join and leave while others run: for servers, and what `generate` is built on.

        with inferencer.engine(model) as engine:
            ticket = engine.submit(prompt, sampling, follow=True)
            while not engine.idle:
                for update in engine.step():
                    ...

    A request gets what `Inferencer.generate` gives to its prompt and sampling alone, whatever else is submitted or
    cancelled, and when. Weights may change only while nothing has begun: a step that finds another `model.version` than
    its unfinished completions began with raises LmflowError, because they would belong to neither. What waits to be
    begun is sampled from the new weights. An engine is used by one thread at a time.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.tokens = 0
        """Tokens sampled so far, those of cancelled requests too."""
        self._tickets = count()

    def submit(self, prompt: Prompt, sampling: Sampling, *, follow: bool = False) -> int:
        """Add a request to those that wait; returns its ticket. It begins in one of the next steps.

        With `follow` there is an update whenever it got tokens, otherwise one for each finished completion. Raises
        DataError for a prompt that cannot be answered, which costs no other request.
        """
        self.check(prompt, sampling)
        ticket = next(self._tickets)
        self._add(ticket, prompt, sampling, follow)
        return ticket

    def check(self, prompt: Prompt, sampling: Sampling, which: str = "The prompt") -> None:
        """Raise DataError, naming the prompt as `which`, where `submit` would refuse it."""
        completion_budget(len(prompt.ids), sampling.max_new_tokens, self.model.context_length, which)

    @abstractmethod
    def _add(self, ticket: int, prompt: Prompt, sampling: Sampling, follow: bool) -> None:
        """Let a request that was checked wait."""

    @abstractmethod
    def step(self) -> list[Update]:
        """Do the next piece of work, at most one forward pass where the inferencer can; nothing if idle.

        The model computes in eval mode and without gradients, and is left in the modes it was in. What a step raises
        concerns all that run: cancel them, or close the engine.
        """

    @abstractmethod
    def cancel(self, ticket: int) -> None:
        """Forget a request, waiting or begun; there are no more updates of it. Nothing happens if it is finished."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether no request waits or runs."""

    @abstractmethod
    def close(self) -> None:
        """Forget all requests, and free what they took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GenerateEngine(Engine):
    """An engine over `Inferencer.generate`: each step answers some of the requests that wait, to their end."""

    def __init__(self, inferencer: Inferencer, model: LanguageModel) -> None:
        super().__init__(model)
        self._inferencer = inferencer
        self._waiting: dict[int, tuple[Prompt, Sampling]] = {}

    def _add(self, ticket: int, prompt: Prompt, sampling: Sampling, follow: bool) -> None:
        self._waiting[ticket] = prompt, sampling

    def step(self) -> list[Update]:
        """Answer the requests that have waited longest. One call of `generate` may raise for all of them."""
        chosen = dict(islice(self._waiting.items(), PROMPTS_AT_A_TIME))
        if not chosen:
            return []
        prompts, samplings = zip(*chosen.values(), strict=True)
        answered = self._inferencer.generate(GenerateRequest(self.model, prompts, samplings, self._count))
        for ticket in chosen:
            del self._waiting[ticket]
        return list(whole(dict(zip(chosen, answered, strict=True))))

    def _count(self, tokens: int) -> None:
        self.tokens += tokens

    def cancel(self, ticket: int) -> None:
        """Forget a request that waits."""
        self._waiting.pop(ticket, None)

    @property
    def idle(self) -> bool:
        """Whether no request waits."""
        return not self._waiting

    def close(self) -> None:
        """Forget all requests."""
        self._waiting.clear()


def whole(answered: dict[int, list[Completion]]) -> Iterator[Update]:
    """Updates that bring completions from beginning to end, by ticket."""
    for ticket, completions in answered.items():
        for sample, each in enumerate(completions):
            yield Update(ticket, sample, each.ids, each.logprobs, each.text, each)


def completion_budget(length: int, new_tokens: int, context_length: int | None, which: str = "The prompt") -> int:
    """Tokens the completion of a prompt of `length` may have: `new_tokens`, or fewer where the context ends before.

    Raises DataError, naming the prompt as `which`, for one without a token or without room for one more.
    """
    if not length:
        raise DataError(f"{which} is empty; there is nothing to continue.")
    if context_length is None:
        return new_tokens
    if length >= context_length:
        raise DataError(
            f"{which} has {length} tokens; the model's context is {context_length}, which leaves no room for an "
            "answer. Shorten it."
        )
    return min(new_tokens, context_length - length)
