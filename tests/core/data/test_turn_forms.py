"""Turns as a chat template takes them."""

from __future__ import annotations

from typing import Any

import pytest

from lmflow.data.sample import Message
from lmflow.data.turn_forms import TurnForm, as_dict, as_dicts, parts

CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": "é"}}}
CALLING = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "3", name="add", tool_call_id="c1")


def test_a_turn_has_what_it_says_and_no_empty_fields():
    assert as_dict(Message("user", "q"), TurnForm()) == {"role": "user", "content": "q"}
    assert as_dict(CALLING, TurnForm()) == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert as_dict(RESULT, TurnForm()) == {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}


def test_arguments_as_text():
    made = as_dict(CALLING, TurnForm(arguments_as_text=True))
    assert made["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": "é"}'}
    assert CALL["function"]["arguments"] == {"a": "é"}, "what the sample holds stays as it is"


def test_ids_that_name_their_calls():
    calling, result, again = as_dicts([CALLING, RESULT, CALLING], TurnForm(ids_name_calls=True))
    assert [each["tool_calls"][0]["id"] for each in (calling, again)] == ["functions.add:0", "functions.add:1"]
    assert result["tool_call_id"] == "functions.add:0"
    assert CALL["id"] == "c1"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q", [{"type": "text", "text": "q"}]),
        ("", [{"type": "text", "text": ""}]),
        ("<image>q", [{"type": "image"}, {"type": "text", "text": "q"}]),
        ("a<image>", [{"type": "text", "text": "a"}, {"type": "image"}]),
    ],
)
def test_contents_as_parts(content: str, expected: list[Any]):
    assert parts(content) == expected
    assert as_dict(Message("user", content), TurnForm(content_as_parts=True))["content"] == expected


INSIDE = Message("assistant", "<think>\nwhy\n</think>\n\nso")
BESIDE = Message("assistant", "so", thinking="why")


@pytest.mark.parametrize(
    ("turn", "thoughts", "content", "beside"),
    [
        (INSIDE, "as given", INSIDE.content, None),
        (INSIDE, "inside", INSIDE.content, None),
        (INSIDE, "beside", "so", "why"),
        (BESIDE, "as given", "so", "why"),
        (BESIDE, "inside", INSIDE.content, None),
        (BESIDE, "beside", "so", "why"),
        (Message("assistant", "<think></think>so"), "beside", "so", None),
        (Message("assistant", "an end: </think>"), "beside", "an end: </think>", None),
        (Message("user", "<think>why</think>so"), "beside", "<think>why</think>so", None),
    ],
)
def test_thoughts_inside_the_content_and_beside_it(turn: Message, thoughts: str, content: str, beside: str | None):
    made = as_dict(turn, TurnForm(thoughts=thoughts))
    assert made["content"] == content
    assert [made.get(name) for name in ("reasoning_content", "thinking", "reasoning")] == [beside] * 3


def test_what_is_done_otherwise_is_said():
    turns = [INSIDE, CALLING]
    assert TurnForm().describe(turns) == []
    assert TurnForm(True, True, "beside", True).describe(turns) == [
        "arguments of calls as text",
        "contents as lists of parts",
        "thoughts beside the content",
        "calls by ids such as functions.NAME:0",
    ]
    assert TurnForm(True, thoughts="beside", ids_name_calls=True).describe([Message("user", "q"), BESIDE]) == []
    assert TurnForm(thoughts="inside").describe([INSIDE, BESIDE]) == ["thoughts inside the content"]
