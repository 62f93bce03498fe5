"""What records mean, how formats are recognised, and what malformed ones are told as."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.containers import read_records
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.record import Record
from lmflow.data.sample import Message
from lmflow.errors import DataError

BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}

S, Q, A, B = (Message(*each) for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}

GOOD: list[tuple[str, dict[str, Any], list[tuple[str, str]], bool]] = [
    ("text_only", {"text": "once"}, [("assistant", "once")], False),
    ("text2text", {"input": "q", "output": "a"}, [("user", "q"), ("assistant", "a")], False),
    ("alpaca", {"instruction": "do", "input": "", "output": "done"}, [("user", "do"), ("assistant", "done")], True),
    (
        "alpaca",
        {"instruction": "do", "input": "it", "output": "done"},
        [("user", "do\n\nit"), ("assistant", "done")],
        True,
    ),
    (
        "alpaca",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        True,
    ),
    (
        "conversation",
        {"conversation_id": 1, "system": "s", "messages": [{"role": "user", "content": "q"}]},
        [("system", "s"), ("user", "q")],
        True,
    ),
    (
        "messages",
        {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]},
        [("system", "s"), ("user", "q")],
        True,
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        [("user", "ab")],
        True,
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("user", "q"), ("assistant", "a")],
        True,
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
        [("user", "q"), ("assistant", "a")],
        True,
    ),
    ("prompt", {"prompt": "q"}, [("user", "q")], True),
    ("prompt", {"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")], True),
    ("prompt", {"prompt": [{"role": "user", "content": "q"}]}, [("user", "q")], True),
    (
        "hh",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yes\n\nmore\n\nHuman: ok\n\nAssistant: bye"},
        [("user", "hi"), ("assistant", "yes\n\nmore"), ("user", "ok"), ("assistant", "bye")],
        True,
    ),
    (
        "hh",
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant:"},
        [("user", "a\n\nb"), ("assistant", "")],
        True,
    ),
]


@pytest.mark.parametrize(("name", "record", "turns", "templated"), GOOD, ids=[g[0] for g in GOOD])
def test_records_become_samples_and_are_recognised(name: str, record: dict[str, Any], turns: Any, templated: bool):
    sample = BY_NAME[name]().sample(record, "f:1")
    assert [(m.role, m.content) for m in sample.messages] == turns
    assert sample.templated == templated
    assert sample.record == record
    assert Formats(FORMATS).resolve([Record(record, "f:1")]).name == name


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("text_only", {"text": 3}, "f:1: text: expected text, found a number 3"),
        ("text2text", {"input": "q"}, "f:1: output: expected text, it is missing"),
        ("alpaca", {"instruction": None, "output": "a"}, "f:1: instruction: expected text, found nothing"),
        ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, r"history\[0\]: expected a pair of texts"),
        ("messages", {"messages": []}, "messages: expected a list of at least one turn, found a list"),
        ("messages", {"messages": ["hi"]}, r"messages\[0\]: expected an object with role and content, found text"),
        (
            "messages",
            {"messages": [{"role": "usr", "content": "q"}]},
            r"messages\[0\]\.role: expected one of .*user.*found text",
        ),
        ("messages", {"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content: expected text"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            r"content\[0\]: expected a text part",
        ),
        ("sharegpt", {"conversations": [{"value": "q"}]}, r"conversations\[0\]\.from: expected one of .*it is missing"),
        ("messages", {"messages": [ASKED], "tools": [{"name": "a\ud83d"}]}, r"tools\[0\]: holds half a character"),
        (
            "messages",
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"day": date(2026, 1, 1)}}]}
                ]
            },
            r"messages\[0\]\.tool_calls\[0\]: Object of type date is not JSON",
        ),
        ("hh", {"chosen": "no marks"}, "chosen: expected text that begins with a blank line"),
    ],
)
def test_malformed_records(name: str, record: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        BY_NAME[name]().sample(record, "f:1")


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("prompt", {"system": "s", "prompt": "q", "completion": "a"}),
        ("prompt", {"system": "s", "prompt": [SYSTEM, ASKED], "completion": "a"}),
        ("preference", {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}),
        ("preference", {"system": "s", "chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "b"}]}),
        (
            "preference",
            {"prompt": "q", "chosen": [SYSTEM, ASKED, SAID], "rejected": [SYSTEM, ASKED, {**SAID, "content": "b"}]},
        ),
        ("preference", {"prompt": [SYSTEM, ASKED], "chosen": [ASKED, SAID], "rejected": "b"}),
        ("kto", {"system": "s", "prompt": "q", "completion": "a", "label": True}),
        ("kto", {"system": "s", "messages": [ASKED, SAID], "label": True}),
        ("messages", {"system": "s", "messages": [ASKED, SAID]}),
        ("conversation", {"system": "s", "messages": [SYSTEM, ASKED, SAID]}),
    ],
)
def test_a_system_text_beside_the_turns_is_never_lost_or_doubled(name: str, record: dict[str, Any]):
    sample = BY_NAME[name]().sample(record, "f:1")
    assert sample.messages == (S, Q, A)
    assert sample.rejected in ((), (S, Q, B))


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("dpo_en_demo.json", "sharegpt", 300),
        ("hh_rlhf_harmless_test.jsonl.gz", "hh", 2312),
        ("tinyshakespeare.txt", "text_only", 1),
    ],
)
def test_real_files(file: str, name: str, count: int, shared_data: Path):
    records = read_records(shared_data / file)
    data = Formats(FORMATS).resolve(records)
    assert (data.name, len(records)) == (name, count)
    samples = [data.sample(record.fields, record.source) for record in records]
    assert all(isinstance(message, Message) for sample in samples for message in sample.messages)
