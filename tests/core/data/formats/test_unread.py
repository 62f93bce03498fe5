"""Which fields of records a format reads."""

from __future__ import annotations

from typing import Any

from lmflow.components import DataFormat
from lmflow.data.formats import FORMATS
from lmflow.data.formats.unread import fields_read, listed, said_fields, told_unread
from lmflow.data.record import Record
from lmflow.data.sample import Message, Sample

BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}


def read(name: str, *rows: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return fields_read(BY_NAME[name](), [Record(row, f"f:{i}") for i, row in enumerate(rows, 1)])


def test_fields_that_say_something():
    record = {"a": 0, "b": False, "c": None, "d": "", "e": [], "f": {}, "g": "x"}
    assert said_fields(record) == ["a", "b", "g"]


def test_fields_are_read_where_the_sample_is_another_without_them():
    record = {"prompt": "q", "completion": "a", "system": "s", "id": 7, "topic": "x", "note": None}
    assert read("prompt", record) == (("prompt", "completion", "system"), ("id", "topic"))
    assert read("messages", {"messages": [{"role": "user", "content": "q"}], "prompt": "q", "prompt_id": "1"}) == (
        ("messages", "prompt"),
        ("prompt_id",),
    ), "a prompt that the dialogue says too is not lost"


def test_what_is_looked_at_and_makes_no_difference_is_read():
    """A weight of 1, the type of a tool, why a completion ended: they would matter if they said something else."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1, "mood": "gay"}]
    record = {"messages": turns, "tools": tools, "parallel_tool_calls": True}
    assert read("messages", record) == (("messages", "tools"), ("parallel_tool_calls", "messages.mood"))
    sampled = {"prompt": "q", "completions": [{"text": "a", "finish_reason": "stop", "tokens": 3}]}
    assert read("completions", sampled) == (("prompt", "completions"), ("completions.tokens",))


def test_fields_of_an_object_are_looked_at_too():
    asked = {"messages": [{"role": "user", "content": "q"}], "parallel_tool_calls": True}
    sides = {side: [{"role": "assistant", "content": side}] for side in ("preferred_output", "non_preferred_output")}
    assert read("preference", {"input": asked, **sides}) == (("input", *sides), ("input.parallel_tool_calls",))


def test_a_field_that_one_record_reads_is_read():
    rows = [{"prompt": "q", "completion": "a", "answer": "b"}, {"prompt": "q", "answer": "b"}, {"prompt": "q", "x": 1}]
    assert read("prompt", *rows) == (("prompt", "completion", "answer"), ("x",))


def test_a_record_that_cannot_be_read_says_nothing_of_its_fields():
    assert read("prompt", {"prompt": 3, "x": 1}, {"prompt": "q"}) == (("prompt",), ("x",))
    assert read("prompt", {"prompt": 3, "x": 1}) == ((), ())


def test_what_aligners_read_of_preferences_is_read():
    record = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}
    assert read("preference", record) == (("prompt", "chosen", "rejected", "margin"), ())
    assert read("prompt", {"prompt": "q", "margin": 2}) == (("prompt",), ("margin",))


def test_a_format_may_fail_as_it_likes_without_a_field():
    class Careless(DataFormat):
        """Reads without looking."""

        name = "careless"

        def sample(self, record: Any, source: str) -> Sample:
            return Sample((Message("assistant", record["shout"].upper()),), False, record, source)

    assert fields_read(Careless(), [Record({"shout": "x", "id": 1}, "f:1")]) == (("shout",), ("id",))


def test_many_fields_are_counted():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(13)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"


def test_fields_of_turns_are_looked_at_too():
    turns = [
        {"role": "user", "content": "q", "mood": "glad"},
        {"role": "assistant", "content": "a", "audio": {"id": 1}},
    ]
    record = Record({"messages": [*turns, {"role": "user", "content": "r", "mood": None}]}, "a.jsonl:1")
    [messages] = [each for each in FORMATS if each.name == "messages"]
    assert fields_read(messages(), [record])[1] == ("messages.mood", "messages.audio")


def test_what_there_is_for_a_weight_is_told():
    assert told_unread(["id"]) == "not read: id"
    told = told_unread(["id", "weight"])
    assert told.startswith("not read: id, weight (records count alike")
    assert "--data.mix FILE=WEIGHT" in told
