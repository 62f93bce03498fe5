"""Which device and dtype a model computes in."""

from __future__ import annotations

import torch

from lmflow.errors import RecipeError

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""dtype of the weights that do not train; those that do are kept in float32."""


def choose_device(wanted: str) -> str:
    """ "cuda" or "cpu" for `training.device` (auto takes a GPU where there is one)."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError(["training.device: cuda was asked for, but torch sees no GPU; use cpu or auto"])
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def choose_precision(wanted: str, device: str) -> str:
    """ "fp32" or "bf16" for `training.precision` (auto takes bf16 on a GPU that computes in it)."""
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
