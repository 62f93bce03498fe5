"""What a turn says, piece by piece, and whether a text says it too.

A chat template is a program of the model's maker: it may leave out a thought, the text beside a call, all calls but the
first. So every part of a turn is looked for in the text. White space is ignored, as templates trim and join; strings
may be escaped as JSON or Python write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmflow.data.sample import Message

THOUGHT_MARKS = re.compile(r"</?think>")
IMAGE_MARK = "<image>"
SHOWN = 60


def quoted(text: str) -> str:
    """A text in quotes on one line; unlike `repr`, letters of all scripts stay as they are."""
    return "'" + text.replace("\\", "\\\\").replace("\n", "\\n") + "'"


def alike(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@dataclass(frozen=True, slots=True)
class Fact:
    """A part of what a turn says: what kind of part, and the text that stands for it."""

    kind: str
    text: str

    def __str__(self) -> str:
        words = " ".join(self.text.split())
        return f"{self.kind} {quoted(words if len(words) <= SHOWN else words[: SHOWN - 1] + '…')}"


@dataclass(frozen=True, slots=True)
class Located:
    """The facts that a text lacks, and where the others begin and end."""

    missing: tuple[Fact, ...]
    begin: int
    end: int


def facts_of(turn: Message) -> list[Fact]:
    """The thoughts, contents, and calls of a turn; what is empty is no fact."""
    found = [Fact("the thought", turn.thinking)] if turn.thinking else []
    for index, piece in enumerate(THOUGHT_MARKS.split(turn.content)):
        thought = index % 2 == 1 and "<think>" in turn.content
        found += [Fact("the thought" if thought else "the text", each) for each in piece.split(IMAGE_MARK)]
    for call in turn.tool_calls:
        found += call_facts(call["function"])
    return [fact for fact in found if fact.text.strip()]


def call_facts(function: Mapping[str, Any]) -> Iterator[Fact]:
    """The name of a call, and the names and values of its arguments."""
    name = str(function["name"])
    yield Fact("the call of", name)
    for text in leaves(function.get("arguments") or {}):
        yield Fact(f"in the call of {name} the argument", text)


def tool_facts(tools: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """The names of the tools that are offered."""
    return [Fact("the tool", str(tool["function"]["name"])) for tool in tools]


def leaves(value: Any) -> Iterator[str]:
    """The keys and values inside a value of JSON, as text; a null is none, as templates may leave it out."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if inside is not None:
                yield str(key)
                yield from leaves(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from leaves(inside)
    elif isinstance(value, bool):
        yield json.dumps(value)
    elif value is not None:
        yield str(value)


def locate(facts: Sequence[Fact], text: str, start: int, stop: int) -> Located:
    """Look for the facts in `text` between the characters `start` and `stop`, each in a place of its own."""
    taken: list[tuple[int, int]] = []
    missing: list[Fact] = []
    for fact in sorted(facts, key=lambda each: -len(each.text)):
        place = next((each for each in places(fact.text, text, start, stop) if _is_free(each, taken)), None)
        if place is None:
            missing.append(fact)
        else:
            taken.append(place)
    begin, end = min(taken, default=(start, start))[0], max((end for _, end in taken), default=start)
    return Located(tuple(missing), begin, end)


def _is_free(place: tuple[int, int], taken: Sequence[tuple[int, int]]) -> bool:
    return all(place[1] <= begin or end <= place[0] for begin, end in taken)


def places(said: str, text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where `said` stands in a part of `text`: as it is, then escaped, then with other white space."""
    for form in forms(said.strip()):
        begin = text.find(form, start, stop)
        while begin >= 0:
            yield begin, begin + len(form)
            begin = text.find(form, begin + 1, stop)
    pattern = re.compile(r"\s*".join(map(re.escape, said.split())))
    yield from (found.span() for found in pattern.finditer(text, start, stop))


def forms(said: str) -> Iterator[str]:
    """A text as it is, and as JSON and Python write it inside quotes; true and false in both languages."""
    yield said
    if said in ("true", "false"):
        yield said.capitalize()
    escaped = (json.dumps(said, ensure_ascii=False), json.dumps(said), repr(said))
    yield from dict.fromkeys(each[1:-1] for each in escaped if each[1:-1] != said)
