"""Turns as a chat template takes them, which templates do not agree on.

Some want arguments of a call as an object, others as JSON text; contents as text or as a list of parts; thoughts inside
the content or beside it; calls named by an id. Which form keeps what is said is found by asking the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmflow.data.facts import IMAGE_MARK
from lmflow.data.sample import Message

THOUGHT = re.compile(r"\s*<think>(?P<thought>.*?)</think>\s*(?P<rest>.*)", re.DOTALL)
BESIDE = ("reasoning_content", "thinking", "reasoning")
"""What templates call the thoughts that stand beside a content."""


@dataclass(frozen=True, slots=True)
class TurnForm:
    """How turns are handed to a template; the defaults are how most take them."""

    arguments_as_text: bool = False
    content_as_parts: bool = False
    thoughts: str = "as given"
    """Or "inside" the content between `<think>` and `</think>`, or "beside" it."""
    ids_name_calls: bool = False
    """Whether the id of a call is its name and number, as in `functions.add:0`."""

    def describe(self, turns: Iterable[Message]) -> list[str]:
        """What is done with these turns otherwise than they say it, or than most templates want it, in words."""
        turns = list(turns)
        calls = any(turn.tool_calls for turn in turns)
        moved = any(as_dict(turn, self) != as_dict(turn, replace(self, thoughts="as given")) for turn in turns)
        said = {
            "arguments of calls as text": calls and self.arguments_as_text,
            "contents as lists of parts": self.content_as_parts,
            f"thoughts {self.thoughts} the content": moved,
            "calls by ids such as functions.NAME:0": calls and self.ids_name_calls,
        }
        return [words for words, holds in said.items() if holds]


def as_dicts(turns: Sequence[Message], form: TurnForm) -> list[dict[str, Any]]:
    """Turns as a template takes them."""
    return list(_with_named_ids(turns, form)) if form.ids_name_calls else [as_dict(turn, form) for turn in turns]


def _with_named_ids(turns: Sequence[Message], form: TurnForm) -> Iterator[dict[str, Any]]:
    """The same, the id of each call being its name and its number in the dialogue."""
    ids: dict[str, str] = {}
    number = 0
    for turn in turns:
        made = as_dict(turn, form)
        for call in made.get("tool_calls", ()):
            named = f"functions.{call['function']['name']}:{number}"
            ids[str(call.get("id"))] = call["id"] = named
            number += 1
        if turn.tool_call_id is not None:
            made["tool_call_id"] = ids.get(turn.tool_call_id, turn.tool_call_id)
        yield made


def as_dict(turn: Message, form: TurnForm) -> dict[str, Any]:
    """One turn as a template takes it."""
    thought, content = thought_and_content(turn, form)
    made: dict[str, Any] = {"role": turn.role, "content": parts(content) if form.content_as_parts else content}
    if thought:
        made |= dict.fromkeys(BESIDE, thought)
    if turn.tool_calls:
        made["tool_calls"] = [as_call(call, form) for call in turn.tool_calls]
    if turn.name is not None:
        made["name"] = turn.name
    if turn.tool_call_id is not None:
        made["tool_call_id"] = turn.tool_call_id
    return made


def thought_and_content(turn: Message, form: TurnForm) -> tuple[str | None, str]:
    """What stands beside the content, and the content."""
    if turn.role != "assistant":
        return None, turn.content
    if form.thoughts == "inside" and turn.thinking:
        return None, f"<think>\n{turn.thinking}\n</think>\n\n{turn.content}"
    if form.thoughts == "beside" and not turn.thinking and (found := THOUGHT.fullmatch(turn.content)):
        return found["thought"].strip() or None, found["rest"]
    return turn.thinking, turn.content


def without_thought(turn: Message, form: TurnForm) -> Message:
    """The turn without what stands beside its content."""
    return replace(turn, thinking=None, content=thought_and_content(turn, form)[1])


def parts(content: str) -> list[dict[str, Any]]:
    """A content as parts: texts, and images where their marks stand."""
    pieces = content.split(IMAGE_MARK)
    made: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):
        made += [{"type": "image"}] if index else []
        made += [{"type": "text", "text": piece}] if piece or len(pieces) == 1 else []
    return made


def as_call(call: Mapping[str, Any], form: TurnForm) -> dict[str, Any]:
    """A call as a template takes it."""
    function = dict(call["function"])
    if form.arguments_as_text:
        function["arguments"] = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": function}
