"""Layers compiled for training alone: what samples and evaluates sees the model as it was written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmflow.distributed.strategies.base import blocks
from lmflow.errors import RecipeError


class CompiledLayers:
    """A context, to be entered any number of times, within which the repeated layers of a model run compiled.

    Compiling them one by one takes a fraction of the time the whole takes, and leaves what lies between them, such as
    the output head, open to the trainer. Shapes are symbols, so that batches of other lengths need no compiling anew.
    """

    def __init__(self, module: nn.Module) -> None:
        """Raises RecipeError for a model that does not say what its layers are."""
        layers = blocks(module)
        if not layers:
            kind = type(module).__name__
            raise RecipeError(
                [f"training.compile: a model of type {kind} does not say which of its modules are layers"]
            )
        self._forwards: list[tuple[nn.Module, Any]] = [
            (layer, torch.compile(layer.forward, dynamic=True)) for layer in layers
        ]

    def __enter__(self) -> None:
        for layer, forward in self._forwards:
            layer.forward = forward

    def __exit__(self, *_: object) -> None:
        for layer, _forward in self._forwards:
            del layer.forward
