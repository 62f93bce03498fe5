"""Records with images: what they mean, how they are recognised, and what is refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.dataset import load_dataset
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.record import Record
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions
from lmflow_multimodal.formats import ImageMessages, ImageText, Llava

ALL: list[type[DataFormat]] = [*FORMATS, Llava, ImageMessages, ImageText]


def at(images: dict[str, str]) -> str:
    return str(Path(images["red"]).parent)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in pairs]


def test_llava(images: dict[str, str]):
    record = {
        "image": "red.png",
        "conversations": turns(("human", "<image>\nwhat?"), ("gpt", "red"), ("human", "why?")),
    }
    sample = Llava(image_folder=at(images)).sample(record, "a:1")
    assert [turn.role for turn in sample.messages] == ["user", "assistant", "user"]
    assert [turn.images for turn in sample.messages] == [(images["red"],), (), ()]
    assert sample.images == (images["red"],)


def test_llava_of_several_images_without_marks_and_without_images(images: dict[str, str]):
    data = Llava(image_folder=at(images))
    several = {"image": ["red.png", "blue.png"], "conversations": turns(("human", "<image> or <image>?"), ("gpt", "x"))}
    assert data.sample(several, "a:1").messages[0].images == (images["red"], images["blue"])
    unmarked = {"image": "red.png", "conversations": turns(("gpt", "hello"), ("human", "what?"), ("gpt", "x"))}
    sample = data.sample(unmarked, "a:2")
    assert sample.messages[1].content == "<image>\nwhat?"
    assert sample.messages[1].images == (images["red"],)
    text = {"conversations": turns(("human", "what?"), ("gpt", "x"))}
    assert data.sample(text, "a:3").images == ()


def test_openai_parts_and_a_column(images: dict[str, str]):
    uri = "data:image/png;base64," + base64.b64encode(Path(images["blue"]).read_bytes()).decode()
    parts = [
        {"type": "text", "text": "is "},
        {"type": "image_url", "image_url": {"url": "red.png"}},
        {"type": "text", "text": " or "},
        {"type": "image_url", "image_url": {"url": uri}},
    ]
    data = ImageMessages(image_folder=at(images))
    [message] = data.sample({"messages": [{"role": "user", "content": parts}]}, "a:1").messages
    assert message.content == "is <image> or <image>"
    assert message.images == (images["red"], uri)
    column = {
        "messages": [
            {"role": "user", "content": "<image>?"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "and <image>?"},
        ],
        "images": ["red.png", "blue.png"],
        "system": "look",
    }
    sample = data.sample(column, "a:2")
    assert [turn.images for turn in sample.messages] == [(), (images["red"],), (), (images["blue"],)]
    both = {"messages": [{"role": "user", "content": parts}], "images": ["red.png"]}
    with pytest.raises(DataError, match="give them once"):
        data.sample(both, "a:3")


def test_image_text(images: dict[str, str]):
    data = ImageText(image_folder=at(images))
    asked = data.sample({"images": ["red.png"], "text": "what?", "output": "red"}, "a:1")
    assert [(turn.role, turn.content) for turn in asked.messages] == [("user", "<image>\nwhat?"), ("assistant", "red")]
    caption = data.sample({"images": ["red.png", "blue.png"], "text": "two"}, "a:2")
    assert [(turn.role, turn.content) for turn in caption.messages] == [
        ("user", "<image><image>"),
        ("assistant", "two"),
    ]
    assert not caption.templated
    inside = data.sample({"images": ["red.png"], "text": "this <image> is red"}, "a:3")
    assert inside.messages[0].images == (images["red"],)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "rad.png"}, r"a:1: image: image .*rad\.png does not exist; did you mean red\.png"),
        ({"image": ["red.png", "red.png"]}, r"a:1: 1 <image> in the texts and 2 images"),
        ({}, r"a:1: 1 <image> in the texts and 0 images"),
        ({"image": 3}, r"a:1: image: expected a path or data URI"),
        ({"image": [""]}, r"a:1: image: expected a path"),
        ({"image": "http://example.org/a.png"}, "address on the network"),
        ({"image": "broken.png"}, "in no format"),
    ],
)
def test_refused_by_record(images: dict[str, str], record: dict[str, Any], message: str):
    Path(at(images), "broken.png").write_bytes(b"no")
    with pytest.raises(DataError, match=message):
        Llava(image_folder=at(images)).sample(
            {**record, "conversations": turns(("human", "<image>"), ("gpt", "x"))}, "a:1"
        )


def test_a_part_without_a_url(images: dict[str, str]):
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}
    with pytest.raises(DataError, match=r"a:1: messages\[0\]\.content\[0\]\.image_url\.url: expected a path"):
        ImageMessages().sample({"messages": [message]}, "a:1")


TALK = {"conversations": turns(("human", "hi"), ("gpt", "ho"))}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ([{**TALK, "image": "a.png"}], "llava"),
        ([TALK, {**TALK, "image": "a.png"}], "llava"),
        ([TALK], "sharegpt"),
        ([CHAT], "messages"),
        ([{**CHAT, "images": []}], "image_messages"),
        ([CHAT, {**CHAT, "images": ["a.png"]}], "image_messages"),
        ([{**CHAT, "system": "x"}, {**CHAT, "images": ["a.png"]}], "image_messages"),
        ([{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}], "image_messages"),
        ([{"images": ["a.png"], "text": "x"}], "image_text"),
    ],
)
def test_recognised(records: list[dict[str, Any]], name: str):
    assert Formats(ALL).resolve([Record(each, "a:1") for each in records]).name == name


def test_two_formats_mixed_are_not_guessed():
    with pytest.raises(DataError, match="a:2: looks like messages, and a:1 like sharegpt"):
        Formats(ALL).resolve([Record(TALK, "a:1"), Record(CHAT, "a:2")])


def test_paths_begin_at_their_own_file(tmp_path: Path, images: dict[str, str]):
    from PIL import Image

    for part, colour in (("train", "red"), ("held", "blue")):
        (tmp_path / part).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / part / "it.png")
        record = {"image": "it.png", "conversations": turns(("human", "<image>"), ("gpt", colour))}
        (tmp_path / part / "data.json").write_text(json.dumps([record]))
    data = DataOptions(path=str(tmp_path / "train" / "data.json"), validation=str(tmp_path / "held" / "data.json"))
    found, summary = load_dataset(data, Formats(ALL), seed=0)
    assert summary.format == "llava"
    assert found.train[0].images == (str(tmp_path / "train" / "it.png"),)
    assert found.heldout[0].images == (str(tmp_path / "held" / "it.png"),)


def test_real_photographs(shared_data: Path):
    found, summary = load_dataset(
        DataOptions(path=str(shared_data / "mllm_demo.json"), validation=0.0), Formats(ALL), seed=0
    )
    assert summary.format == "image_messages"
    assert all(Path(image).is_file() for sample in found.train for image in sample.images)
    assert len(found.train[0].images) == 2


def test_what_stands_beside_the_texts_is_kept(images: dict[str, str]):
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "blue", "name": "look", "tool_call_id": "c1"},
        {"role": "assistant", "content": "blue", "loss": False},
    ]
    record = {"messages": messages, "images": ["red.png"], "tools": ["look"], "system_prompt": "s"}
    sample = ImageMessages(image_folder=at(images)).sample(record, "a:1")
    system, asked, called, answered, said = sample.messages
    assert (system.content, asked.images) == ("s", (images["red"],))
    assert (called.tool_calls, called.thinking) == ((call,), "hm")
    assert (answered.name, answered.tool_call_id, said.is_target) == ("look", "c1", False)
    assert sample.tools == ({"type": "function", "function": {"name": "look"}},)
    flagged = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x", "weight": 0}]
    sample = Llava(image_folder=at(images)).sample({"image": "red.png", "conversations": flagged}, "a:2")
    assert (sample.messages[0].images, sample.messages[1].is_target) == ((images["red"],), False)
