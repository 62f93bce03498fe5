"""Slot `inferencer`: how tokens are sampled from a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.components.contexts import GenerateRequest, RunContext
    from lmflow.inference.types import Completion

PROMPTS_AT_A_TIME = 16
"""Prompts that `Inferencer.generate_each` gives to `generate` together: few, so that little is lost by stopping."""


class Inferencer(Component):
    """Slot `inferencer`: how tokens are sampled from a model."""

    samples_exactly: ClassVar[bool] = True
    """Whether completions follow the model's distribution under the sampling options, n of them independently.

    False for those that search or choose (beam search, best of n): the conformance suite then asks for less.
    """
    shards_prompts: ClassVar[bool] = False
    """Whether it divides the prompts among the processes of a run itself; else each is given a part of them."""

    @abstractmethod
    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """Sample `n` completions for each prompt, in the order of the prompts.

        A prompt's completions depend on the prompt, the options and the seed, never on its neighbours.
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

    def open(self, context: RunContext) -> None:
        """Called once before the first request, with the model that will be sampled from; the default does nothing.

        An inferencer with a server or an engine of its own starts it here. Weights that change later have another
        `model.version`.
        """

    def close(self) -> None:
        """Called once after the last request, also where a run fails; the default does nothing."""

    def figures(self) -> Mapping[str, float]:
        """What it counted in all calls so far, by name, to stand among a run's metrics; the default counts nothing."""
        return {}
