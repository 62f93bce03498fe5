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
        from lmflow.inference.drawing import draw_completions

        # Greedy completions of one prompt are all the same, so one is drawn.
        n = 1 if sampling.temperature == 0 else sampling.n
        waiting: dict[int, dict[int, Completion]] = {}
        with closing(
            draw_completions(model, prompts, sampling.model_copy(update={"n": n}), self.batch_tokens)
        ) as passes:
            for drawn in passes:
                for number, completion in drawn.finished:
                    index, sample = divmod(number, n)
                    of_prompt = waiting.setdefault(index, {})
                    of_prompt[sample] = completion
                    if len(of_prompt) == n:
                        del waiting[index]
                        yield index, [of_prompt[j % n] for j in range(sampling.n)]
                if progress is not None:
                    progress(drawn.tokens)

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
