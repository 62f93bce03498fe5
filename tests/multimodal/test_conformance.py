"""The projector tuner, and two others on a model that sees, through the conformance suite."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lmflow.components import Model, Tuner
from lmflow.testing import TunerSuite
from lmflow.tuners import Full
from lmflow_lora.lora import Lora
from lmflow_multimodal.component import VisionLanguage
from lmflow_multimodal.tuner import Projector


def picture(colour: str) -> str:
    """A plain picture as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class TestProjector(TunerSuite):
    records = tuple(
        {"images": [picture(colour)], "text": "what color is it?", "output": colour}
        for colour in ["red", "green", "blue", "white"] * 3
    )

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Projector()

    @pytest.fixture
    def model(self, model_directory: Path, tower_file: Path) -> Model:
        return VisionLanguage(language_model=str(model_directory), tower=str(tower_file), checkpoint="random")


class TestFull(TestProjector):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Full()


class TestLora(TestProjector):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4)
