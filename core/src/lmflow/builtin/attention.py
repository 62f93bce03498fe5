"""Attention `sdpa` and `eager`: the two that every installation has."""

from __future__ import annotations

from typing import Any

from lmflow.components import Attention


class Sdpa(Attention):
    """torch's scaled_dot_product_attention: fused where the machine has a kernel for it."""

    name = "sdpa"

    def implementation(self, config: Any, device: str) -> str:
        """Transformers' own name for it."""
        return "sdpa"


class Eager(Attention):
    """Plain matrix products: slow, and the one that every model has."""

    name = "eager"

    def implementation(self, config: Any, device: str) -> str:
        """Transformers' own name for it."""
        return "eager"
