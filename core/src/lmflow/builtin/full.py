"""The tuner of the core: every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmflow.components import Tuner

if TYPE_CHECKING:
    from torch import nn


class Full(Tuner):
    """Train every parameter."""

    name = "full"

    def prepare(self, model: nn.Module) -> nn.Module:
        """All parameters require gradients."""
        return model.requires_grad_(True)
