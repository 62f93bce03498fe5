"""The `draft` section of `lmflow draft`: what is built, and how much it is shown."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DraftOptions(BaseModel):
    """The draft that is built, and the share of prompts it is measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(1, gt=0, description="Layers; every one is computed for every proposal.")
    hidden: int | None = Field(
        None, gt=0, multiple_of=32, description="Hidden size; the target's if unset, and its embeddings too."
    )
    intermediate: int | None = Field(None, gt=0, description="Size within the layers; 8/3 of the hidden size if unset.")
    heldout_prompts: int = Field(32, gt=0, description="Prompts kept from training, at most a tenth, to measure on.")
