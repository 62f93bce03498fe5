"""Slot `inferencer`: how tokens are sampled from a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from lmflow.components.base import Component
from lmflow.components.engine import PROMPTS_AT_A_TIME, Engine, GenerateEngine

if TYPE_CHECKING:
    from lmflow.components.contexts import GenerateRequest, RunContext
    from lmflow.inference.types import Completion
    from lmflow.models.language_model import LanguageModel


class Inferencer(Component):
    """Slot `inferencer`: how tokens are sampled from a model."""

    samples_exactly: ClassVar[bool] = True
    """Whether completions follow the model's distribution under the sampling options, n of them independently.

    False for those that search or choose (beam search, best of n): the conformance suite then asks for less. They give
    as many completions as asked for all the same, whatever their own options say, and may pass over temperature, top-k,
    top-p and the seed.
    """
    shards_prompts: ClassVar[bool] = False
    """Whether it divides the prompts among the processes of a run itself; else each is given a part of them."""

    @abstractmethod
    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """Sample `n` completions for each prompt, in the order of the prompts.

        Each prompt has its own sampling (`request.samplings`), `n` too. Its completions depend on the prompt, its
        sampling and the weights, never on its neighbours. Raises DataError for a prompt that is empty or leaves no
        room in the model's context. The model is left in the mode it was in, also where something is raised.
        """

    def generate_each(self, request: GenerateRequest) -> Iterator[tuple[int, list[Completion]]]:
        """Yield a prompt's index and completions as soon as they are there, in any order: what `generate` returns.

        The default samples a few prompts at a time; an inferencer whose prompts finish one by one does better.
        """
        for start in range(0, len(request.prompts), PROMPTS_AT_A_TIME):
            indices = range(start, min(start + PROMPTS_AT_A_TIME, len(request.prompts)))
            yield from enumerate(self.generate(request.part(indices)), start)

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives to the only prompt, piece by piece.

        The default yields it whole.
        """
        [sampling] = request.samplings
        [[completion]] = self.generate(replace(request, sampling=sampling.model_copy(update={"n": 1})))
        yield completion.text

    def engine(self, model: LanguageModel) -> Engine:
        """A new engine, to which requests may be submitted while others run; close it after use.

        The default answers what waits by `generate`, some prompts to their end at each step; an inferencer that works
        token by token does better.
        """
        return GenerateEngine(self, model)

    def open(self, context: RunContext) -> None:
        """Called once before the first request, with the model that will be sampled from; the default does nothing.

        An inferencer with a server or an engine of its own starts it here. Weights that change later have another
        `model.version`: what was computed with others, a copy of them or a cache, must not be used then.
        """

    def close(self) -> None:
        """Called once after the last request, also where `open` or a request failed; the default does nothing."""

    @contextmanager
    def opened(self, context: RunContext) -> Iterator[Self]:
        """Open for the time of the context: what everything that uses an inferencer goes through."""
        try:
            self.open(context)
            yield self
        finally:
            self.close()

    def figures(self) -> Mapping[str, float]:
        """What it counted in all calls so far, by name, to stand among a run's metrics; the default counts nothing."""
        return {}
