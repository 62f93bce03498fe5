"""Inferencer `hf`: batched sampling from any Transformers model, one prefill per prompt."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lmflow.data.sample import Prompt
from lmflow.inference.engine import PassInferencer
from lmflow.inference.types import Sampling

if TYPE_CHECKING:
    from lmflow.inference.generate import StepOutput
    from lmflow.inference.text_stream import TextStream
    from lmflow.models.language_model import LanguageModel


class HuggingFace(PassInferencer):
    """Sample with Transformers: batches by length, one prefill per prompt, finished rows leave."""

    name = "hf"

    batch_tokens: int = Field(
        32_768,
        gt=0,
        description="Most tokens in the key-value cache, prompts and completions of all rows; a prompt's samples stay "
        "together even if they take more.",
    )

    def passes(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        new_text: Callable[[], TextStream] | None = None,
    ) -> Generator[StepOutput, None, None]:
        """See `generate_completions`."""
        from lmflow.inference.generate import generate_completions

        return generate_completions(model, prompts, sampling, self.batch_tokens, new_text)
