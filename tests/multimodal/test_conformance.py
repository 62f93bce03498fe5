"""Tuners on a model that sees, that model, and the formats with images, through the conformance suites."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmflow.builtin.full import Full
from lmflow.components import DataFormat, Model, Tuner
from lmflow.testing import DataFormatSuite, ModelSuite, TunerSuite
from lmflow.testing.data_format import BadRecord, Dialogue
from lmflow_lora.lora import Lora
from lmflow_multimodal.component import VisionLanguage
from lmflow_multimodal.formats import ImageMessages, ImageText, Llava
from lmflow_multimodal.tuner import Projector


def image(colour: str) -> str:
    """A plain image as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class TestProjector(TunerSuite):
    records = tuple(
        {"images": [image(colour)], "text": "what color is it?", "output": colour}
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


class TestVisionLanguage(ModelSuite):
    kept_in_float32 = ("tower.",)

    @pytest.fixture
    def model_component(self, model_directory: Path, tower_file: Path) -> Model:
        return VisionLanguage(language_model=str(model_directory), tower=str(tower_file), checkpoint="random")


RED, BLUE = image("red"), image("blue")
ABSENT = "absent.png"


class ImageFormatSuite(DataFormatSuite):
    """Records and dialogues from `good`, which pairs them, and bad records from `bad`."""

    good: Sequence[tuple[Mapping[str, Any], Dialogue]]
    bad: Sequence[BadRecord]

    @pytest.fixture
    def records(self) -> Sequence[Mapping[str, Any]]:
        return [record for record, _ in self.good]

    @pytest.fixture
    def dialogues(self) -> Sequence[Dialogue]:
        return [dialogue for _, dialogue in self.good]

    @pytest.fixture
    def bad_records(self) -> Sequence[BadRecord]:
        return self.bad


def turns(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}]


class TestLlava(ImageFormatSuite):
    good = [
        (
            {"id": "1", "image": RED, "conversations": turns("<image>\nWhat color?")},
            [("user", "<image>\nWhat color?"), ("assistant", "red")],
        ),
        (
            {"image": [RED, BLUE], "conversations": turns("Which is warm?")},
            [("user", "<image>\n<image>\nWhich is warm?"), ("assistant", "red")],
        ),
    ]
    bad = [
        ({"image": ABSENT, "conversations": turns("What color?")}, "image"),
        ({"image": RED, "conversations": []}, "conversations"),
        ({"image": RED, "conversations": turns("<image> and <image>")}, "<image>"),
    ]

    @pytest.fixture
    def data_format(self) -> DataFormat:
        return Llava()


class TestImageMessages(ImageFormatSuite):
    good = [
        (
            {
                "messages": [
                    {"role": "user", "content": "<image>What color?"},
                    {"role": "assistant", "content": "red"},
                ],
                "images": [RED],
            },
            [("user", "<image>What color?"), ("assistant", "red")],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": BLUE}},
                            {"type": "text", "text": "What color?"},
                        ],
                    },
                    {"role": "assistant", "content": "blue"},
                ]
            },
            [("user", "<image>What color?"), ("assistant", "blue")],
        ),
    ]
    bad = [
        ({"messages": [{"role": "user", "content": "What?"}], "images": [ABSENT]}, "images"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]}, "image_url"),
    ]

    @pytest.fixture
    def data_format(self) -> DataFormat:
        return ImageMessages()


class TestImageText(ImageFormatSuite):
    good = [
        (
            {"images": [RED], "text": "What color?", "output": "red"},
            [("user", "<image>\nWhat color?"), ("assistant", "red")],
        ),
        ({"image": RED, "text": "a red square"}, [("user", "<image>"), ("assistant", "a red square")]),
        ({"images": [RED], "text": "This <image> is red."}, [("assistant", "This <image> is red.")]),
    ]
    bad = [
        ({"images": [ABSENT], "text": "What color?"}, "images"),
        ({"images": [RED], "text": 3}, "text"),
        ({"images": [RED], "text": "q", "output": None}, "output"),
    ]

    @pytest.fixture
    def data_format(self) -> DataFormat:
        return ImageText()
