"""Inferencers whose engine works by forward passes: `generate`, `generate_each` and `stream` are built on it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmflow.components import Engine, GenerateRequest, Inferencer, Update
from lmflow.inference.types import Completion

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


class PassInferencer(Inferencer):
    """An inferencer that is told by its engine."""

    @abstractmethod
    def engine(self, model: LanguageModel) -> Engine:
        """An engine, each of whose steps is one forward pass; see `Inferencer.engine`."""

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """Sample completions, longest prompts first; see `Inferencer.generate`."""
        found = dict(self.generate_each(request))
        return [found[index] for index in range(len(request.prompts))]

    def generate_each(self, request: GenerateRequest) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's completions when the last of them is there; see `Inferencer.generate_each`.

        Raises DataError as `generate` does, and LmflowError where weights change before the last is taken.
        """
        from lmflow.inference.scheduler import longest_first

        prompts, samplings = request.prompts, request.samplings
        with self.engine(request.model) as engine:
            for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True), 1):
                engine.check(prompt, sampling, f"Prompt {number} of {len(prompts)}")
            order = longest_first([len(prompt.ids) for prompt in prompts])
            indices = {engine.submit(prompts[index], samplings[index]): index for index in order}
            found: dict[int, dict[int, Completion]] = {}
            for updates in steps(engine, request):
                for update in updates:
                    index = indices[update.ticket]
                    assert update.completion is not None  # these requests are not followed
                    found.setdefault(index, {})[update.sample] = update.completion
                    if len(found[index]) == samplings[index].n:
                        completions = found.pop(index)
                        yield index, [completions[sample] for sample in range(len(completions))]

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece, each as soon as it is final."""
        [prompt], [sampling] = request.prompts, request.samplings
        with self.engine(request.model) as engine:
            engine.check(prompt, sampling, "Prompt 1 of 1")
            engine.submit(prompt, sampling.model_copy(update={"n": 1}), follow=True)
            for updates in steps(engine, request):
                yield from (update.text for update in updates if update.text)


def steps(engine: Engine, request: GenerateRequest) -> Iterator[list[Update]]:
    """What each step brings until the engine is idle; the request's `progress` is told once that is taken."""
    while not engine.idle:
        before = engine.tokens
        yield engine.step()
        if request.progress is not None:
            request.progress(engine.tokens - before)
