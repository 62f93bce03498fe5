"""Inferencer `hf`: batched sampling from any Transformers model, one prefill per prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lmflow.components import Engine, RunContext
from lmflow.inference.engine import PassInferencer

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel


class HuggingFace(PassInferencer):
    """Sample with Transformers: batches by length, one prefill per prompt, finished rows leave."""

    name = "hf"
    may_change = ("batch_tokens",)

    batch_tokens: int = Field(
        32_768,
        gt=0,
        description="Most tokens in the key-value cache, prompts and completions of all rows; a prompt's samples stay "
        "together even if they take more.",
    )

    def open(self, context: RunContext) -> None:
        """Find the way to decode that is right for the model, and say so where it is unusual."""
        from lmflow.inference.ways import describe_way

        if note := describe_way(context.model):
            context.log.note(note)

    def engine(self, model: LanguageModel) -> Engine:
        """See `DecodingEngine`."""
        from lmflow.inference.generate import DecodingEngine

        return DecodingEngine(model, self.batch_tokens)
