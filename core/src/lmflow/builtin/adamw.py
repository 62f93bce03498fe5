"""Optimizer `adamw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import Optimizer

if TYPE_CHECKING:
    import torch


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv 1711.05101)."""

    name = "adamw"

    beta1: float = Field(0.9, ge=0, lt=1, description="Adam beta1: decay of the running mean of gradients.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam beta2: decay of the running mean of squared gradients.")
    epsilon: float = Field(1e-8, gt=0, description="Term against division by zero.")

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """torch's own AdamW."""
        import torch

        return torch.optim.AdamW(list(groups), betas=(self.beta1, self.beta2), eps=self.epsilon)
