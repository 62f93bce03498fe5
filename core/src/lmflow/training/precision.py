"""Which device and number format a run computes in, and what follows from the latter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmflow.errors import RecipeError


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


@contextmanager
def replaced_weights(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Within the context each parameter holds another value; afterwards exactly what it held.

    Autocast keeps its casts of parameters until it ends, so they are dropped: it would compute with the old values.
    """
    saved = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        torch.clear_autocast_cache()
        yield
    finally:
        for parameter, value in saved.items():
            parameter.data = value
        torch.clear_autocast_cache()


DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Number format of the weights that do not train; those that do are kept in float32."""
