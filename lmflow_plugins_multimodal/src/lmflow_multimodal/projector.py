"""From the features of an image's patches to embeddings of a language model."""

from __future__ import annotations

from typing import Literal

from torch import nn

Kind = Literal["linear", "mlp"]


def make_projector(kind: Kind, features: int, hidden: int) -> nn.Sequential:
    """A map from (..., features) to (..., hidden).

    `linear` is one layer (LLaVA, arXiv 2304.08485); `mlp` two with GELU between them (LLaVA-1.5, arXiv 2310.03744).
    """
    if kind == "linear":
        return nn.Sequential(nn.Linear(features, hidden))
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
