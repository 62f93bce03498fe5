"""Fields of a record: the value that was expected, or an error with the file's line and the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmflow.components import DataFormat
from lmflow.data.formats import FORMATS
from lmflow.data.formats.fields import (
    ROLES,
    bad,
    call_in,
    checked,
    in_order_of_calls,
    text_of,
    tools_of,
    turns_of,
    with_system,
)
from lmflow.data.sample import Message
from lmflow.errors import DataError

BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}
Q, A = Message("user", "q"), Message("assistant", "a")
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ADD = {"type": "function", "function": {"name": "add"}}
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def turns(*values: Any) -> tuple[Message, ...]:
    return turns_of({"messages": list(values)}, "messages", "f:1", role="role", content="content")


# Texts


@pytest.mark.parametrize("text", ["", " ", "数据 €", "🙂", "a\x00b", "\u2028"])
def test_every_text_is_text(text: str):
    assert text_of({"a": text}, "a", "f:1") == checked(text, "f:1", "a") == text


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({}, "it is missing"),
        ({"a": None}, "found nothing"),
        ({"a": True}, "found a truth value true"),
        ({"a": 1.5}, "found a number 1.5"),
        ({"a": ["x"]}, 'found a list ["x"]'),
        ({"a": {"b": "ü"}}, 'found an object {"b": "ü"}'),
        ({"a": b"x"}, "found a bytes"),
    ],
)
def test_what_is_no_text_is_shown(record: dict[str, Any], what: str):
    with pytest.raises(DataError) as caught:
        text_of(record, "a", "f.jsonl:7")
    assert str(caught.value).startswith(f"f.jsonl:7: a: expected text, {what}")


def test_a_long_value_is_cut_in_a_message():
    message = str(bad("f:1", "a", "text", ["x" * 200]))
    assert message.endswith("...")
    assert len(message) < 110


@pytest.mark.parametrize(("text", "place"), [("\ud83d", 0), ("ab\udc00c", 2), ("é\ud83dz", 1)])
def test_half_a_character_is_placed(text: str, place: int):
    with pytest.raises(DataError, match=rf"^f:1: a: holds half a character \(\\u[0-9a-f]{{4}} at {place}\)"):
        checked(text, "f:1", "a")


# Turns


@pytest.mark.parametrize(("said", "role"), [(each, role) for each, role in ROLES.items() if each != "function"])
def test_roles_in_this_project_s_words(said: str, role: str):
    for each in (said, said.capitalize(), said.upper()):
        [turn] = turns({"role": each, "content": "x"})
        assert turn.role == role


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"messages\[1\]\.role: expected one of system, .*it is missing"),
        ({"role": ["user"], "content": "x"}, r"messages\[1\]\.role: expected one of .*found a list"),
        ({"role": "user"}, r"messages\[1\]\.content: expected text, or a list of text parts, found nothing"),
        ({"role": "user", "content": ["x"]}, r"messages\[1\]\.content\[0\]: expected a text part"),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[1\]\.content\[0\]: expected a text part"),
        ({"role": "tool", "content": "3", "name": 3}, r"messages\[1\]\.name: expected text, found a number 3"),
        ({"role": "tool", "content": "3", "tool_call_id": []}, r"messages\[1\]\.tool_call_id: expected text"),
        ({"role": "assistant", "tool_calls": [{}]}, r"messages\[1\]\.tool_calls\[0\]: expected a call"),
        ({"role": "assistant", "tool_calls": "add"}, r"messages\[1\]\.tool_calls: expected a list of calls"),
        (
            {"role": "assistant", "tool_calls": [{"name": "add", "arguments": "{"}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments: expected an object, or JSON text of one",
        ),
    ],
)
def test_a_turn_that_cannot_be_read_is_placed(value: Any, message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        turns(ASKED, value)


@pytest.mark.parametrize(("role", "content"), [("role", "content"), ("from", "value")])
def test_turns_of_either_usual_names(role: str, content: str):
    for asked, said in ((ASKED, SAID), ({"from": "human", "value": "q"}, {"from": "gpt", "value": "a"})):
        assert turns_of({"x": [asked, said]}, "x", "f:1", role=role, content=content) == (Q, A)


def test_turns_as_json_text():
    text = json.dumps([ASKED, SAID])
    assert turns_of({"messages": f" {text}"}, "messages", "f:1", role="role", content="content") == (Q, A)


@pytest.mark.parametrize("value", [None, [], "hi", "[hi]", "[]", {"role": "user"}])
def test_turns_are_a_list_of_at_least_one(value: Any):
    with pytest.raises(DataError, match=r"^f:1: messages: expected a list of at least one turn"):
        turns_of({"messages": value}, "messages", "f:1", role="role", content="content")


def test_parts_of_a_content_are_put_together_as_they_are():
    parts = [{"type": "text", "text": text} for text in ("a ", "", "€")]
    assert turns({"role": "user", "content": parts})[0].content == "a €"
    assert turns({"role": "user", "content": []})[0].content == ""


def test_names_and_ids_are_those_of_what_a_tool_answers():
    answer = {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}
    assert turns(answer)[0] == Message("tool", "3", name="add", tool_call_id="c1")
    assert turns({**ASKED, "name": "Ada"})[0] == Q, "a user's name is not shown to the model"


def test_functions_in_the_older_form_of_openai_are_calls_and_answers():
    """LMFlow's role `function` is a call, OpenAI's is what the function answers, which is never trained."""
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    record = {"messages": [ASKED, call, {"role": "function", "name": "add", "content": "3"}, SAID]}
    turns = BY_NAME["messages"]().sample(record, "f:1").messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1].tool_calls == ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)
    assert (turns[2].name, turns[2].content) == ("add", "3")
    lmflow = {"messages": [ASKED, {"role": "function", "content": '{"name": "add", "arguments": {"a": 1}}'}]}
    assert BY_NAME["conversation"]().sample(lmflow, "f:1").messages[1] == turns[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reasoning_content": ["1 + 1"]}, r"messages\[1\]\.reasoning_content: expected text, found a list"),
        ({"weight": 0.5}, r"messages\[1\]\.weight: expected 0 or 1, as a single answer cannot be weighted"),
        ({"function_call": "add"}, r"messages\[1\]\.function_call: expected a call"),
    ],
)
def test_what_an_answer_says_beside_its_content_is_not_lost(more: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"f:1: {message}"):
        BY_NAME["messages"]().sample({"messages": [ASKED, {**SAID, **more}]}, "f:1")
    kept = {"reasoning_content": None, "weight": 1, "thinking": ""}
    assert BY_NAME["messages"]().sample({"messages": [ASKED, {**SAID, **kept}]}, "f:1").messages == (Q, A)


# Calls and tools


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', 1),
        ('[{"name": "add", "arguments": {}}, {"name": "sub"}]', 2),
        ("[]", 0),
        ("add(1)", 0),
        ('{"a": 1}', 0),
        ("3", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
    ids=["one", "two", "none", "text", "object", "number", "empty", "deep"],
)
def test_a_text_is_calls_or_another_text(text: str, count: int):
    assert len(call_in(text)) == count


def test_a_text_of_role_function_that_is_no_call_stays_a_text():
    assert turns({"role": "function", "content": "I add"})[0] == Message("assistant", "I add")


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_arguments_are_an_object_or_its_json(arguments: Any):
    call = {"id": "c1", "function": {"name": "add", "arguments": arguments}}
    [turn] = turns({"role": "assistant", "content": None, "tool_calls": [call]})
    assert turn == Message("assistant", "", tool_calls=({**CALLED, "id": "c1"},))


@pytest.mark.parametrize(
    "tools",
    [[ADD], '[{"type": "function", "function": {"name": "add"}}]', [{"name": "add"}], ['{"name": "add"}'], ["add"]],
)
def test_tools_in_every_form(tools: Any):
    assert tools_of({"tools": tools}, "f:1") == (ADD,)


@pytest.mark.parametrize("tools", [None, [], "", "  ", "[]"])
def test_no_tools(tools: Any):
    assert tools_of({"tools": tools}, "f:1") == tools_of({}, "f:1") == ()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("{", r"tools: expected a list of tools, or JSON text of one, found text"),
        ({"name": "add"}, r"tools: expected a list of tools, or JSON text of one, found an object"),
        ([ADD, 3], r"tools\[1\]: expected a tool .*, found a number 3"),
        ([{"function": {}}], r"tools\[0\]\.function\.name: expected text"),
        ([{"name": ""}], r"tools\[0\]\.function\.name: expected text"),
    ],
)
def test_tools_that_are_none(tools: Any, message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        tools_of({"tools": tools}, "f:1")


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"x": value}
    return value


def test_tools_nested_too_deeply_are_told_so():
    with pytest.raises(DataError, match=r"^f:1: tools\[0\]: nested too deeply"):
        tools_of({"tools": [{"name": "add", "parameters": deep(100_000)}]}, "f:1")


# The system's text


@pytest.mark.parametrize(
    ("system", "given", "expected"),
    [
        ("s", (Q, A), ("s", "q", "a")),
        ("s", (Message("system", "s"), Q), ("s", "q")),
        ("s", (Message("system", "other"), Q), ("s", "other", "q")),
        ("", (Q,), ("q",)),
        (None, (Q,), ("q",)),
        ("s", (), ("s",)),
    ],
)
def test_the_system_s_text_comes_first_and_once(system: Any, given: tuple[Message, ...], expected: tuple[str, ...]):
    assert tuple(turn.content for turn in with_system({"system": system}, given, "f:1")) == expected


def test_a_system_that_is_no_text():
    with pytest.raises(DataError, match=r"^f:1: system: expected text, found a number 3"):
        with_system({"system": 3}, (Q,), "f:1")


def test_a_system_text_by_another_name():
    assert with_system({"system": None, "system_prompt": "s"}, (Q,), "f:1") == (Message("system", "s"), Q)
    assert with_system({"system": "s", "system_prompt": "s"}, (Q,), "f:1") == (Message("system", "s"), Q)
    with pytest.raises(DataError, match=r"^f:1: system_prompt: system says something else; keep one of them"):
        with_system({"system": "s", "system_prompt": "other"}, (Q,), "f:1")


@pytest.mark.parametrize("functions", [[{"name": "add"}], '[{"name": "add"}]'])
def test_functions_are_tools_by_their_older_name(functions: Any):
    assert tools_of({"functions": functions}, "f:1") == tools_of({"functions": functions, "tools": []}, "f:1") == (ADD,)
    with pytest.raises(DataError, match=r"^f:1: functions\[0\]: expected a tool"):
        tools_of({"functions": [3]}, "f:1")
    with pytest.raises(DataError, match=r"^f:1: functions: tools says something else"):
        tools_of({"functions": functions, "tools": ["sub"]}, "f:1")


def test_results_stand_in_the_order_of_their_calls():
    calls = tuple({"type": "function", "id": each, "function": {"name": each, "arguments": {}}} for each in "ab")
    calling, (first, second) = (
        Message("assistant", "", tool_calls=calls),
        (Message("tool", each, tool_call_id=each) for each in "ab"),
    )
    asked, unknown = Message("user", "q"), Message("tool", "?", tool_call_id="c")
    assert in_order_of_calls([asked, calling, second, first]) == (asked, calling, first, second)
    assert in_order_of_calls([asked, calling, second, unknown]) == (asked, calling, second, unknown)
    assert in_order_of_calls([calling, second, asked, first]) == (calling, second, asked, first)
