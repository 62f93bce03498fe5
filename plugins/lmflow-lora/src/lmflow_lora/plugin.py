"""What this distribution adds: tuner `lora`, and adapter directories as models."""

from __future__ import annotations

from lmflow.components import Model, Tuner
from lmflow.hookspecs import hookimpl
from lmflow_lora.adapter import Adapter
from lmflow_lora.lora import Lora

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_tuners() -> list[type[Tuner]]:
    """Tuner lora."""
    return [Lora]


@hookimpl
def lmflow_models() -> list[type[Model]]:
    """Model adapter."""
    return [Adapter]
