"""Reading the fields of a record: the value that was expected, or an error that names file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from lmflow.data.formats.targets import check_masks, is_target, thinking_of
from lmflow.data.record import describe
from lmflow.data.sample import Message
from lmflow.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "function": "assistant",  # LMFlow: the call an assistant makes
    "function_call": "assistant",
    "tool_call": "assistant",  # ms-swift
    "observation": "tool",
    "tool_response": "tool",
}
CALLING = ("function", "function_call", "tool_call")
"""Roles whose text is the call of a tool."""
STYLES = (("role", "content"), ("from", "value"))
"""Names that dialogues give to who speaks and what is said."""
ANSWERS = ("completion", "response", "answer")
"""Fields that hold the answer to a prompt."""
SYSTEM = ("system", "system_prompt")
"""Fields beside a dialogue that hold the text of the system."""
TOOLS = ("tools", "functions")
"""Fields that hold what the assistant may call; OpenAI's older records have the second."""


def text_of(record: Mapping[str, Any], field: str, source: str) -> str:
    """A field that must be text. Raises DataError saying what it is instead."""
    value = record.get(field)
    if not isinstance(value, str):
        raise bad(source, field, "text", value, missing=field not in record)
    return checked(value, source, field)


def checked(text: str, source: str, place: str) -> str:
    """The text, if it can be written as UTF-8: JSON can hold halves of characters, which no tokenizer takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source}: {place}: holds half a character (\\u{ord(text[error.start]):04x} at {error.start}), "
                "which is no text"
            ) from None
    return text


def turns_of(record: Mapping[str, Any], field: str, source: str, *, role: str, content: str) -> tuple[Message, ...]:
    """A field that must be a list of turns, with their roles in this project's words.

    `role` and `content` are what the format calls who speaks and what is said; turns of the other usual names
    (role and content, from and value) are read too, and the JSON text of a list, as tables hold it.
    """
    value = record.get(field)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value, value)
    if not isinstance(value, list) or not value:
        raise bad(source, field, "a list of at least one turn", value, missing=field not in record)
    check_masks(value, [_is_answer(turn) for turn in value], source, field)
    return in_order_of_calls([_turn(turn, source, f"{field}[{i}]", role, content) for i, turn in enumerate(value)])


def in_order_of_calls(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns, what tools answer in the order of the calls: many templates leave out which belongs to which."""
    made: list[Message] = []
    places: dict[str | None, int] = {}
    for is_answer, run in groupby(turns, key=lambda turn: turn.role == "tool"):
        some = list(run)
        if is_answer and len(places) > 1 and all(turn.tool_call_id in places for turn in some):
            some.sort(key=lambda turn: places[turn.tool_call_id])
        made += some
        places = {call.get("id"): number for number, call in enumerate(some[-1].tool_calls)}
    return tuple(made)


def _parsed(text: str, otherwise: Any) -> Any:
    """The value of a JSON text, or another where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def _turn(turn: Any, source: str, place: str, role: str, content: str) -> Message:
    if not isinstance(turn, dict):
        raise bad(source, place, f"an object with {role} and {content}", turn)
    if role not in turn:
        role, content = next((style for style in STYLES if style[0] in turn), (role, content))
    known = _role(turn, role, source, place)
    learnt, thoughts = is_target(turn, known, source, place), thinking_of(turn, known, source, place)
    calls = _calls_of(turn, source, place)
    value = _said(turn, content, known, source, place)
    text = "" if calls and value is None else _content(value, source, f"{place}.{content}")
    if known == "assistant" and turn[role].strip().lower() in CALLING and (called := call_in(text)):
        calls, text = called, ""
    if known != "tool":
        return Message(known, text, tool_calls=calls, thinking=thoughts, is_target=learnt)
    name, answered = (_named(turn, field, source, place) for field in ("name", "tool_call_id"))
    return Message(known, text, tool_calls=calls, name=name, tool_call_id=answered)


def _is_answer(turn: Any) -> bool:
    said = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return isinstance(said, str) and ROLES.get(said.strip().lower()) == "assistant"


def _role(turn: Mapping[str, Any], field: str, source: str, place: str) -> str:
    """Who speaks, in this project's words."""
    value = turn.get(field)
    said = value.strip().lower() if isinstance(value, str) else ""
    known = ROLES.get(said)
    if known is None:
        raise bad(source, f"{place}.{field}", f"one of {', '.join(ROLES)}", value, missing=field not in turn)
    if said == "function" and isinstance(turn.get("name"), str):
        return "tool"  # OpenAI: what a function answers, with its name; LMFlow's calls have none
    return known


def _said(turn: Mapping[str, Any], field: str, role: str, source: str, place: str) -> Any:
    """The content of a turn; of an answer that has none, OpenAI's `refusal`, which is what is said in its stead."""
    if role != "assistant" or turn.get("refusal") in (None, ""):
        return turn.get(field)
    if turn.get(field) not in (None, ""):
        raise DataError(
            f"{source}: {place}.refusal: stands beside {field}, and an answer says one of them; leave it out with "
            f"--data.ignore {place.partition('[')[0]}.refusal"
        )
    return text_of({f"{place}.refusal": turn["refusal"]}, f"{place}.refusal", source)


def _content(value: Any, source: str, place: str) -> str:
    if isinstance(value, str):
        return checked(value, source, place)
    if isinstance(value, list):
        return "".join(_parts(value, source, place))
    raise bad(source, place, "text, or a list of text parts", value)


def _parts(parts: Sequence[Any], source: str, place: str) -> Iterable[str]:
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            raise bad(source, f"{place}[{index}]", 'a text part {"type": "text", "text": …}', part)
        yield checked(part[kind], source, f"{place}[{index}]")


def _named(turn: Mapping[str, Any], field: str, source: str, place: str) -> str | None:
    """The tool, or the call, that a tool's turn answers, where it names one."""
    return None if turn.get(field) is None else text_of({f"{place}.{field}": turn[field]}, f"{place}.{field}", source)


def _as_json(value: Mapping[str, Any], source: str, place: str) -> Mapping[str, Any]:
    """The value, if it can be written as JSON, as templates and formats write tools and calls."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise DataError(f"{source}: {place}: nested too deeply") from None
    except TypeError as error:  # a table may hold a date
        raise DataError(f"{source}: {place}: {error}") from None
    checked(text, source, place)
    return value


def _calls_of(turn: Mapping[str, Any], source: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """The calls of a turn, of OpenAI's older form the one in `function_call`."""
    calls = _calls(turn.get("tool_calls"), source, f"{place}.tool_calls")
    if turn.get("function_call") is None:
        return calls
    return (*calls, _call({"function": turn["function_call"]}, source, f"{place}.function_call"))


def _calls(value: Any, source: str, place: str) -> tuple[Mapping[str, Any], ...]:
    """Calls of tools in OpenAI's form; arguments may be an object, or JSON text of one."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise bad(source, place, "a list of calls", value)
    return tuple(_call(each, source, f"{place}[{index}]") for index, each in enumerate(value))


def _call(value: Any, source: str, place: str) -> Mapping[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise bad(source, place, 'a call {"function": {"name", "arguments"}}', value)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments or "{}", arguments)
    if not isinstance(arguments, dict):
        raise bad(source, f"{place}.function.arguments", "an object, or JSON text of one", arguments)
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return _as_json(made | ({"id": value["id"]} if isinstance(value.get("id"), str) else {}), source, place)


def call_in(text: str) -> tuple[Mapping[str, Any], ...]:
    """The calls that a text is, none if it is another text: {"name", "arguments"}, or a list of them."""
    try:
        value = json.loads(text)
        return tuple(_call(each, "", "") for each in (value if isinstance(value, list) else [value]))
    except (ValueError, RecursionError, DataError):
        return ()


def tools_of(record: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], ...]:
    """What the record says the assistant may call; the list, or its elements, may be JSON text, or bare names."""
    field = _one_of(record, TOOLS, source)
    value = record.get(field)
    if isinstance(value, str):
        value = _parsed(value, value) if value.strip() else []
    if value is None:
        return ()
    if not isinstance(value, list):
        raise bad(source, field, "a list of tools, or JSON text of one", value)
    return tuple(_tool(each, source, f"{field}[{index}]") for index, each in enumerate(value))


def _one_of(record: Mapping[str, Any], fields: Sequence[str], source: str) -> str:
    """The first field that says something. Raises DataError where another says something else."""
    said = [field for field in fields if record.get(field)]
    for other in said[1:]:
        if record[other] != record[said[0]]:
            raise DataError(f"{source}: {other}: {said[0]} says something else; keep one of them (--data.ignore FIELD)")
    return said[0] if said else fields[0]


def _tool(value: Any, source: str, place: str) -> Mapping[str, Any]:
    found = value
    if isinstance(value, str):
        found = _parsed(value, {"name": value})  # LMFlow's tools are texts; one that is no JSON is a name
    if not isinstance(found, dict):
        raise bad(source, place, 'a tool {"type": "function", "function": {"name", …}}', value)
    function = found.get("function", found)
    if "function" in found and found.get("type") not in (None, "function"):
        raise bad(source, f"{place}.type", "function", found["type"])
    if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
        raise bad(source, f"{place}.function.name", "text", function)
    return {"type": "function", "function": _as_json(function, source, place)}


def with_system(record: Mapping[str, Any], turns: tuple[Message, ...], source: str) -> tuple[Message, ...]:
    """The turns after the text of `system` or `system_prompt`, if there is one that they do not begin with."""
    field = _one_of(record, SYSTEM, source)
    if not record.get(field):
        return turns
    system = Message("system", text_of(record, field, source))
    return turns if turns[:1] == (system,) else (system, *turns)


def bad(source: str, field: str, expected: str, found: Any, *, missing: bool = False) -> DataError:
    """The error for a malformed field."""
    what = "it is missing" if missing else f"found {describe(found)}"
    return DataError(f"{source}: {field}: expected {expected}, {what}")
