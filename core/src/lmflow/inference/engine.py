"""Inferencers that draw by forward passes: what `generate`, `generate_each` and `stream` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from lmflow.components import Inferencer
from lmflow.data.sample import Prompt
from lmflow.inference.types import Completion, Sampling

if TYPE_CHECKING:
    from lmflow.inference.generate import StepOutput
    from lmflow.inference.text_stream import TextStream
    from lmflow.models.language_model import LanguageModel


class PassInferencer(Inferencer):
    """An inferencer that says what each forward pass brought."""

    @abstractmethod
    def passes(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        new_text: Callable[[], TextStream] | None = None,
    ) -> Generator[StepOutput, None, None]:
        """Draw `sampling.n` completions for each prompt; numbers and `new_text` as in `generate_completions`.

        Raises DataError for a prompt that is empty or leaves no room in the model's context.
        """

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw completions, longest prompts first; see `Inferencer.generate`. Raises what `passes` raises."""
        drawn = dict(self.generate_each(model, prompts, sampling, progress))
        return [drawn[index] for index in range(len(prompts))]

    def generate_each(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each prompt's completions when the last of them is drawn; see `Inferencer.generate_each`.

        The model is in eval mode until the last is taken or the iterator closed.
        """
        from lmflow.inference.generate import whole_prompts

        # Greedy completions of one prompt are all the same, so one is drawn.
        n = 1 if sampling.temperature == 0 else sampling.n
        with closing(self.passes(model, prompts, sampling.model_copy(update={"n": n}))) as passes:
            for index, completions in whole_prompts(passes, n, progress):
                yield index, completions * (sampling.n // n)

    def stream(self, model: LanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece, each as soon as it is final.

        The model is in eval mode until the last piece is taken or the iterator closed.
        """
        from lmflow.inference.text_stream import TextStream

        text = TextStream(model.decode, sampling.stop)
        one = sampling.model_copy(update={"n": 1})
        with closing(self.passes(model, [prompt], one, lambda: text)) as passes:
            for _ in passes:
                if piece := text.take():
                    yield piece
