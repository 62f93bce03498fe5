"""Samples of one format as records of another, and what that loses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lmflow.data.formats import FORMATS
from lmflow.data.tools.convert import convert
from lmflow.errors import DataError

from .turns import ADD, ANSWER, CALL, USER

BY_NAME = {each.name: each for each in FORMATS}

RECORDS: dict[str, dict[str, Any]] = {
    "text_only": {"text": "once"},
    "text2text": {"input": "q", "output": "a"},
    "text_to_textlist": {"input": "q", "output": ["a", "b"]},
    "text_to_scored_textlist": {"input": "q", "output": [{"score": 0.5, "text": "a"}, {"score": 1.0, "text": "b"}]},
    "conversation": {
        "system": "s",
        "tools": [json.dumps(ADD)],
        "messages": [USER, CALL, {"role": "tool", "content": "1"}, ANSWER],
    },
    "messages": {"messages": [USER, CALL, {"role": "tool", "content": "1", "name": "add"}, ANSWER], "tools": [ADD]},
    "sharegpt": {
        "system": "s",
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "alpaca": {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]},
    "prompt": {"prompt": [{"role": "system", "content": "s"}, USER], "completion": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": [USER, ANSWER][1:]},
    "paired_text_to_text": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "paired_conversation": {"chosen": {"messages": [USER, ANSWER]}, "rejected": {"messages": [USER, USER]}},
    "kto": {"prompt": "q", "completion": "a", "label": False},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_format_writes_it_reads(name: str):
    kind = BY_NAME[name]()
    sample = kind.sample(RECORDS[name], "a:1")
    [converted] = convert([sample], kind)
    assert converted.lost == ()
    again = kind.sample(converted.record, "a:1")
    assert (again.messages, again.tools, again.rejected) == (sample.messages, sample.tools, sample.rejected)


@pytest.mark.parametrize(
    ("name", "target", "lost"),
    [
        ("alpaca", "messages", ()),
        ("alpaca", "conversation", ()),
        ("alpaca", "sharegpt", ()),
        ("hh", "preference", ()),
        ("hh", "paired_conversation", ()),
        ("sharegpt", "preference", ()),
        ("messages", "prompt", ()),
        ("hh", "messages", ("the rejected answer",)),
        ("messages", "sharegpt", ("which tool and which call an answer belongs to",)),
        ("kto", "prompt", ("the rejected answer", "the label")),
        ("text2text", "messages", ("whether a chat template is put around it",)),
        (
            "text_to_scored_textlist",
            "text_to_textlist",
            ("the dialogue as it is", "the rejected answer", "the other answers, or their scores"),
        ),
        ("text_to_scored_textlist", "paired_text_to_text", ("the other answers, or their scores",)),
        (
            "text_to_scored_textlist",
            "preference",
            ("whether a chat template is put around it", "the other answers, or their scores"),
        ),
        ("messages", "hh", None),
        ("kto", "text2text", ("whether a chat template is put around it",)),
        ("kto", "alpaca", ()),
        ("prompt", "kto", None),
    ],
)
def test_what_another_format_cannot_hold_is_said(name: str, target: str, lost: tuple[str, ...] | None):
    sample = BY_NAME[name]().sample(RECORDS[name], "a:1")
    if lost is None:
        with pytest.raises(DataError, match="a:1: "):
            list(convert([sample], BY_NAME[target]()))
        return
    assert next(convert([sample], BY_NAME[target]())).lost == lost


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"reasoning_content": "hm"}, "thoughts that stand beside an answer"),
        ({"loss": False}, "which answers are not to be learnt"),
    ],
    ids=["thoughts", "loss"],
)
def test_what_stands_beside_an_answer_is_held_or_told(turn: dict[str, Any], words: str):
    sample = BY_NAME["messages"]().sample({"messages": [USER, {**ANSWER, **turn}]}, "a:1")
    pair = replace(sample, rejected=(*sample.messages[:1], replace(sample.messages[1], content="other")))
    for name, given in (("messages", sample), ("prompt", sample), ("preference", pair), ("paired_conversation", pair)):
        assert next(convert([given], BY_NAME[name]())).lost == (), name
    for name, given in (("sharegpt", sample), ("conversation", sample), ("alpaca", sample), ("hh", pair)):
        assert next(convert([given], BY_NAME[name]())).lost == (words,), name


def test_a_prompt_alone_is_not_written_as_an_answer():
    sample = BY_NAME["prompt"]().sample({"prompt": "q"}, "a:1")
    for name in ("text2text", "text_to_textlist"):
        with pytest.raises(DataError, match=r"^a:1: it has no answer"):
            list(convert([sample], BY_NAME[name]()))


def test_fields_that_no_format_read_are_named():
    kind = BY_NAME["prompt"]()
    record = {"prompt": "q", "completion": "a", "category": "x", "id": None, "tags": []}
    [made] = convert([kind.sample(record, "a:1")], BY_NAME["messages"](), kind)
    assert made.unread == ("category",)
    assert made.source == "a:1"
    [made] = convert([kind.sample(record, "a:1")], BY_NAME["messages"]())
    assert made.unread == (), "without the format that read it nobody knows"
