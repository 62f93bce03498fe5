"""Inferencer `hf`: batched sampling from any Transformers model, one prefill per prompt."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from pydantic import Field

from lmflow.components import GenerateRequest
from lmflow.inference.engine import PassInferencer, only_sampling

if TYPE_CHECKING:
    from lmflow.inference.generate import StepOutput
    from lmflow.inference.text_stream import TextStream


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
        self, request: GenerateRequest, new_text: Callable[[], TextStream] | None = None
    ) -> Generator[StepOutput, None, None]:
        """See `generate_completions`."""
        from lmflow.inference.generate import generate_completions

        sampling = only_sampling(request)
        return generate_completions(request.model, request.prompts, sampling, self.batch_tokens, new_text)
