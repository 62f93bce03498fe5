"""Inferencer `hf`: batched sampling from any Transformers model, one prefill per prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from pydantic import Field

from lmflow.components import Inferencer
from lmflow.inference.completion import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from lmflow.models import LanguageModel


class HuggingFace(Inferencer):
    """Sample with Transformers: batches by length, one prefill per prompt, finished rows leave."""

    name = "hf"

    batch_tokens: int = Field(
        32_768,
        gt=0,
        description="Most tokens in the key-value cache, prompts and completions of all rows; a prompt's samples stay "
        "together even if they take more.",
    )

    def generate(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw completions, longest prompts first; see `Inferencer.generate`.

        Raises DataError for a prompt that is empty or leaves no room in the model's context.
        """
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
        from lmflow.inference.drawing import draw_completions, whole_prompts

        # Greedy completions of one prompt are all the same, so one is drawn.
        n = 1 if sampling.temperature == 0 else sampling.n
        options = sampling.model_copy(update={"n": n})
        with closing(draw_completions(model, prompts, options, self.batch_tokens)) as passes:
            for index, completions in whole_prompts(passes, n, progress):
                yield index, completions * (sampling.n // n)

    def stream(self, model: LanguageModel, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        """Yield the text of the first completion `generate` gives, piece by piece, each as soon as it is final.

        The model is in eval mode until the last piece is taken or the iterator closed.
        """
        from lmflow.inference.drawing import draw_completions
        from lmflow.inference.stopping import TextStream

        text = TextStream(model.decode, sampling.stop)
        one = sampling.model_copy(update={"n": 1})
        with closing(draw_completions(model, [prompt], one, self.batch_tokens, lambda: text)) as passes:
            for _ in passes:
                if piece := text.take():
                    yield piece
