"""Inferencers that sample by forward passes: what `generate`, `generate_each` and `stream` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from lmflow.components import GenerateRequest, Inferencer
from lmflow.inference.types import Completion, Sampling

if TYPE_CHECKING:
    from lmflow.inference.generate import StepOutput
    from lmflow.inference.text_stream import TextStream


class PassInferencer(Inferencer):
    """An inferencer that says what each forward pass brought."""

    @abstractmethod
    def passes(
        self, request: GenerateRequest, new_text: Callable[[], TextStream] | None = None
    ) -> Generator[StepOutput, None, None]:
        """Sample `n` completions for each prompt; `request.sampling` is one for all of them.

        Numbers and `new_text` are as in `generate_completions`. Raises DataError for a prompt that is empty or leaves
        no room in the model's context.
        """

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """Sample completions, longest prompts first; see `Inferencer.generate`. Raises what `passes` raises."""
        found = dict(self.generate_each(request))
        return [found[index] for index in range(len(request.prompts))]

    def generate_each(self, request: GenerateRequest) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's completions when the last of them is there; see `Inferencer.generate_each`.

        Prompts of one sampling come together. The model is in eval mode until the last is taken or the iterator closed.
        """
        from lmflow.inference.generate import complete_prompts

        for sampling, indices in alike(request).items():
            # Greedy completions of one prompt are all the same, so one is enough.
            n = 1 if sampling.temperature == 0 else sampling.n
            part = replace(request.part(indices), sampling=sampling.model_copy(update={"n": n}))
            with closing(self.passes(part)) as passes:
                for index, completions in complete_prompts(passes, n, request.progress):
                    yield indices[index], completions * (sampling.n // n)

    def stream(self, request: GenerateRequest) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece, each as soon as it is final.

        The model is in eval mode until the last piece is taken or the iterator closed.
        """
        from lmflow.inference.text_stream import TextStream

        [sampling] = request.samplings
        text = TextStream(request.model.decode, sampling.stop)
        one = replace(request, sampling=sampling.model_copy(update={"n": 1}))
        with closing(self.passes(one, lambda: text)) as passes:
            for step in passes:
                if request.progress is not None:
                    request.progress(step.tokens)
                if piece := text.take():
                    yield piece


def alike(request: GenerateRequest) -> dict[Sampling, list[int]]:
    """Indices of the prompts by their sampling, in the order each is first asked for."""
    found: dict[Sampling, list[int]] = {}
    for index, sampling in enumerate(request.samplings):
        found.setdefault(sampling, []).append(index)
    return found


def only_sampling(request: GenerateRequest) -> Sampling:
    """The sampling of a request that has one for all prompts."""
    return request.sampling if isinstance(request.sampling, Sampling) else request.samplings[0]
