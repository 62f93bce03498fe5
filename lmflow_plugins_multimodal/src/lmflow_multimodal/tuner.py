"""Tuner `projector`: the language model stays as it is, so that only the projector learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmflow.components import Need, Tuner

if TYPE_CHECKING:
    from torch import nn


class Projector(Tuner):
    """Train the projector alone: the first stage of LLaVA (arXiv 2310.03744)."""

    name = "projector"
    supports_quantization = True
    needs = (Need("model", because="only such a model has a projector", names=("vision-language",)),)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Nothing of the language model requires gradients; the model itself adds its projector."""
        return model.requires_grad_(False)
