"""What this distribution adds: model vision-language, tuner projector, and formats of records with images."""

from __future__ import annotations

from lmflow.components import DataFormat, Model, Tuner
from lmflow.hookspecs import hookimpl
from lmflow_multimodal.component import VisionLanguage
from lmflow_multimodal.formats import ImageMessages, ImageText, Llava
from lmflow_multimodal.tuner import Projector

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_models() -> list[type[Model]]:
    """Model vision-language."""
    return [VisionLanguage]


@hookimpl
def lmflow_tuners() -> list[type[Tuner]]:
    """Tuner projector."""
    return [Projector]


@hookimpl
def lmflow_data_formats() -> list[type[DataFormat]]:
    """Formats llava, image_messages and image_text."""
    return [Llava, ImageMessages, ImageText]
