"""Recognising what records mean: one format, the options it takes, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from lmflow.components import DataFormat
from lmflow.data.dataset import load_dataset, read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.record import Record
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError, RecipeError
from lmflow.recipe.sections.data import DataOptions, Reading

Write = Callable[[str, Iterable[Any]], str]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
Q, A = Message("user", "q"), Message("assistant", "a")
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


class Shouted(DataFormat):
    """Texts in capitals."""

    name = "shouted"
    marks: int = Field(0, description="Exclamation marks behind each text.")
    folder: str | None = Field(None, description="Where they were heard.")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        return "shout" in record

    def in_folder(self, folder: Path) -> DataFormat:
        return self if self.folder is not None else self.model_copy(update={"folder": str(folder)})

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        heard = f"{record['shout'].upper()}{'!' * self.marks}"
        return Sample((Message("assistant", heard),), False, {**record, "folder": self.folder}, source)


WITH_OPTIONS = [*FORMATS, Shouted]


# Which one


def test_a_declared_type_decides():
    record = Record({"messages": [{"role": "user", "content": "q"}]}, "f:1", declared="conversation")
    assert Formats(FORMATS).resolve([record]).name == "conversation"


def test_records_of_no_known_format():
    with pytest.raises(
        DataError, match=r"f:1: records with foo, bar are none of the installed formats \(alpaca.*--data NAME"
    ):
        Formats(FORMATS).resolve([Record({"foo": 1, "bar": 2}, "f:1")])


def test_a_named_format_is_taken_at_its_word():
    chosen = BY_NAME["text2text"]()
    assert Formats(FORMATS, chosen).resolve([Record({"foo": 1}, "f:1")]) is chosen


def test_a_format_that_includes_others_is_preferred_to_them():
    class Tagged(BY_NAME["messages"]):  # type: ignore[misc, name-defined]
        name = "tagged"
        includes = ("messages",)

        @classmethod
        def recognises(cls, record: Any) -> bool:
            return "tag" in record

    plain, tagged = ({"messages": [{"role": "user", "content": "q"}], **more} for more in ({}, {"tag": 1}))
    formats = [*FORMATS, Tagged]
    assert Formats(formats).resolve([Record(plain, "a:1"), Record(tagged, "a:2")]).name == "tagged"
    assert Formats(formats).resolve([Record(plain, "a:1")]).name == "messages"


def test_a_label_of_another_kind_is_refused_with_the_way_out(write: Write):
    record = {"prompt": "q", "completion": "a", "label": "sports"}
    assert Formats(FORMATS).resolve([Record(record, "f:1")]).name == "kto"
    with pytest.raises(
        DataError, match=r'f:1: label: expected true or false, .* found text "sports"; .*--data\.ignore'
    ):
        BY_NAME["kto"]().sample(record, "f:1")
    [sample] = read_samples(Reading(path=write("d.jsonl", [record]), ignore=["label"]), Formats(FORMATS))
    assert (sample.messages, sample.label) == ((Q, A), None)


@pytest.mark.parametrize(
    ("label", "wanted"), [(True, True), (False, False), (1, True), (0.0, False), ("True", True), ("false", False)]
)
def test_an_unwanted_answer_is_known_by_any_label(label: Any, wanted: bool):
    """Read as a prompt with its completion, it would be trained on."""
    for said in ({"prompt": "q", "completion": "a"}, {"messages": [ASKED, SAID]}):
        kind = Formats(FORMATS).resolve([Record({**said, "label": label}, "f:1")])
        sample = kind.sample({**said, "label": label}, "f:1")
        assert (kind.name, sample.label, sample.messages[-1]) == ("kto", wanted, A if wanted else Q)


def test_two_formats_in_one_file_are_told_with_both_places():
    records = [Record({"prompt": "q"}, "f:1"), Record({"text": "t"}, "f:2")]
    with pytest.raises(
        DataError, match=r"^f:2: looks like text_only, and f:1 like prompt: one file must hold one format"
    ):
        Formats(FORMATS).resolve(records)
    with pytest.raises(DataError, match=r"^f:2: has foo, and f:1 like prompt"):
        Formats(FORMATS).resolve([records[0], Record({"foo": 1}, "f:2")])


def test_a_record_that_several_formats_read():
    class Other(Shouted):
        """Texts in capitals too."""

        name = "other"

    with pytest.raises(
        DataError, match=r"^f:1: records with shout could be any of other, shouted; name one with --data"
    ):
        Formats([*WITH_OPTIONS, Other]).resolve([Record({"shout": "x"}, "f:1")])


def test_a_record_without_a_field():
    with pytest.raises(DataError, match=r"^f:1: records with no field are none of the installed formats"):
        Formats(FORMATS).resolve([Record({}, "f:1")])


# Options


def test_options_reach_the_format_that_is_recognised(tmp_path: Path, write: Write):
    path = write("d.jsonl", ['{"shout": "fire"}', '{"shout": "water"}'])
    found, summary = load_dataset(DataOptions(path=path, validation=0), Formats(WITH_OPTIONS, options={"marks": 2}), 0)
    assert [sample.messages[0].content for sample in found.train] == ["FIRE!!", "WATER!!"]
    assert found.format == Shouted(marks=2, folder=str(tmp_path))
    assert found.options == DataOptions(path=path, validation=0)
    assert (summary.format, summary.recognised) == ("shouted", True)


def test_a_format_is_told_the_folder_of_each_place(tmp_path: Path, write: Write):
    places = {}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        places[write(f"{folder}/d.jsonl", ['{"shout": "fire"}'])] = 1.0
    samples = read_samples(Reading(mix=places), Formats(WITH_OPTIONS))
    assert [sample.record["folder"] for sample in samples] == [str(tmp_path / "one"), str(tmp_path / "two")]
    [sample] = read_samples(Reading(path=str(tmp_path / "one")), Formats(WITH_OPTIONS, Shouted()))
    assert sample.record["folder"] == str(tmp_path / "one")
    [sample] = read_samples(Reading(path=str(tmp_path / "one")), Formats(WITH_OPTIONS, Shouted(folder="here")))
    assert sample.record["folder"] == "here"


def test_an_option_that_the_recognised_format_lacks(write: Write):
    path = write("d.jsonl", ['{"text": "fire"}'])
    message = (
        r"data\.marks: d\.jsonl:1 is recognised as text_only \(by text\), which has no such option; it is one of "
        r"shouted\. Leave it out, or name the format with --data NAME"
    )
    with pytest.raises(DataError, match=message):
        read_samples(Reading(path=path), Formats(WITH_OPTIONS, options={"marks": 2}))


def test_an_option_that_the_recognised_format_cannot_take(write: Write):
    path = write("d.jsonl", ['{"shout": "fire"}'])
    with pytest.raises(RecipeError, match=r"data\.marks: expected a whole number, got 'many'"):
        read_samples(Reading(path=path), Formats(WITH_OPTIONS, options={"marks": "many"}))


def test_a_null_decides_no_format():
    record = Record({"messages": [{"role": "user", "content": "q"}], "prompt": None}, "a.jsonl:1")
    assert Formats(FORMATS).resolve([record]).name == "messages"
