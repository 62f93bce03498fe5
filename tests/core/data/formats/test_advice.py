"""What is advised for records of no format is what reads them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.advice import Way, way_to_read
from lmflow.data.record import Record
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.recipe.sections.data import Reading

Write = Callable[[str, Iterable[Any]], str]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CALL = '[{"name": "add", "arguments": {"a": 1}}]'

UNKNOWN: list[tuple[dict[str, Any], str, str, list[str], list[str]]] = [
    (
        {"instruction": "q", "context": "c", "response": "a", "category": "x"},
        "--data.columns input=context,output=response",
        "alpaca",
        ["q\n\nc", "a"],
        ["category"],
    ),
    (
        {"id": "1", "system_prompt": "s", "question": "q", "response": "a"},
        "--data.columns prompt=question",
        "prompt",
        ["s", "q", "a"],
        ["id"],
    ),
    ({"question": "q", "answer": "a"}, "--data.columns prompt=question", "prompt", ["q", "a"], []),
    ({"problem": "q", "solution": "a"}, "--data.columns prompt=problem,completion=solution", "prompt", ["q", "a"], []),
    (
        {"query": "q", "tools": '[{"name": "add"}]', "answers": CALL},
        "--data.columns prompt=query,completion=answers",
        "prompt",
        ["q", ""],
        [],
    ),
    ({"query": "q", "positive": "a", "negative": "b"}, "--data.columns prompt=query", "preference", ["q", "a"], []),
    ({"chat": TURNS}, "--data.columns messages=chat", "messages", ["q", "a"], []),
    ({"dialog": "\n\nHuman: q\n\nAssistant: a"}, "--data.columns text=dialog", "text_only", ["\n\nHuman: q\n\nAssistant: a"], []),
    ({"dialogue": "\n\nHuman: q\n\nAssistant: a"}, "--data.columns chosen=dialogue", "hh", ["q", "a"], []),
    (
        {"question": "q", "completion": "a", "label": 7},
        "--data.columns instruction=question,output=completion",
        "alpaca",
        ["q", "a"],
        ["label"],
    ),
    (
        {"task": "q", "completion": "a", "kto_tag": 7},
        "--data.ignore kto_tag --data.columns prompt=task",
        "prompt",
        ["q", "a"],
        [],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "options", "name", "contents", "unread"), UNKNOWN, ids=lambda value: str(value)[:30]
)
def test_what_is_advised_reads_the_records(
    record: dict[str, Any], options: str, name: str, contents: list[str], unread: list[str], write: Write
):
    path = write("d.jsonl", [record, record])
    with pytest.raises(DataError) as caught:
        read_samples(Reading(path=path), Formats(FORMATS))
    said = f"{options} reads them as {name}"
    assert str(caught.value).startswith(
        f"d.jsonl:1: records with {', '.join(record)} are of no format as they are; {said}"
    )
    assert f"(not read: {', '.join(unread)})" in str(caught.value) or not unread
    words = shlex.split(options)
    given = dict(zip(words[::2], words[1::2], strict=True))
    columns = dict(pair.split("=") for pair in given.get("--data.columns", "").split(",") if pair)
    ignored = given["--data.ignore"].split(",") if "--data.ignore" in given else []
    for sample in read_samples(Reading(path=path, columns=columns, ignore=ignored), Formats(FORMATS)):
        assert [turn.content for turn in sample.messages] == contents


def test_calls_as_json_are_calls(write: Write):
    path = write("d.jsonl", [{"query": "q", "tools": '[{"name": "add"}]', "answers": CALL}])
    data = Reading(path=path, columns={"prompt": "query", "completion": "answers"})
    [sample] = read_samples(data, Formats(FORMATS))
    assert [call["function"]["name"] for call in sample.messages[-1].tool_calls] == ["add"]


def advised(*rows: dict[str, Any], formats: Any = FORMATS) -> Way | None:
    return way_to_read([Record(row, f"f:{i}") for i, row in enumerate(rows, 1)], formats)


@pytest.mark.parametrize(
    "rows",
    [
        [{"foo": 1}],
        [{}],
        [{"question": 3}],
        [{"question": "q", "answer": "a"}, {"answer": "a"}],
        [{"question": "q", "answer": "a"}, {"question": None, "answer": "a"}],
    ],
    ids=str,
)
def test_nothing_is_advised_that_does_not_read_every_record(rows: list[dict[str, Any]]):
    assert advised(*rows) is None


def test_fields_that_some_records_leave_empty_are_read_all_the_same():
    way = advised(
        {"instruction": "q", "context": "", "response": "a"}, {"instruction": "q", "context": "c", "response": "a"}
    )
    assert way is not None
    assert way.options == ("--data.columns input=context,output=response",)


def test_a_format_that_reads_all_fields_is_advised_by_name():
    class Riddles(DataFormat):
        """Riddles, recognised by nobody."""

        name = "riddles"

        def sample(self, record: Any, source: str) -> Sample:
            return Sample((Message("user", record["riddle"]),), True, record, source)

    formats = [*FORMATS, Riddles]
    way = advised({"riddle": "q"}, formats=formats)
    assert way is not None
    assert way.describe() == "--data riddles reads them as riddles"
    assert advised({"riddle": "q", "id": 1}, formats=formats) is None
