"""The `training` section of a recipe."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How parameters move, whatever the tuner and the aligner."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    may_change: ClassVar[tuple[str, ...]] = (
        "micro_batch_size",
        "gradient_checkpointing",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_checkpoints",
    )
    """Options that a run may be resumed with other values of, since the result stays the same."""

    learning_rate: float = Field(2e-4, gt=0, description="Highest learning rate of all.")
    batch_size: int = Field(8, gt=0, description="Samples per optimizer step.")
    micro_batch_size: int | None = Field(
        None,
        gt=0,
        description="Samples (rows, when packing) per forward pass; if unset at most 8, fewer when long. "
        "Changes memory only.",
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the data, where the aligner does not say otherwise.")
    max_steps: int | None = Field(None, gt=0, description="Number of optimizer steps, whatever the epochs.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to this norm; none: never.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="dtype of the computation; auto is bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory.")
    compile: bool = Field(
        False, description="Compile the model's layers (torch.compile): the first steps are slow, the others faster."
    )
    evaluate_every: int | None = Field(
        None, gt=0, description="Steps between evaluations; start and end only if unset."
    )
    checkpoint_every: int | None = Field(
        None, gt=0, description="Steps between checkpoints; if unset, as often as checkpoint_minutes says."
    )
    checkpoint_minutes: float | None = Field(
        5.0,
        gt=0,
        description="Minutes between checkpoints where checkpoint_every is unset, more where saving takes over a tenth "
        "of them; none: at the end only.",
    )
    keep_checkpoints: int = Field(2, gt=0, description="Newest checkpoints to keep.")
    result: Literal["last", "best"] = Field(
        "last",
        description="Which step's weights are the result; best is the one with the lowest held-out loss, needs "
        "evaluate_every, and keeps its checkpoint.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes a GPU if there is."
    )

    def total_steps(self, items: int) -> int:
        """Optimizer steps of a run over so many items: `max_steps`, or `epochs` passes."""
        return self.max_steps or self.steps_for(items, self.epochs)

    def steps_for(self, samples: int, epochs: float) -> int:
        """Optimizer steps that `epochs` passes over `samples` take."""
        return max(1, math.ceil(epochs * math.ceil(samples / self.batch_size)))
