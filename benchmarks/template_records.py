"""The dialogues that templates.py tries on each chat template, and what must be found of each turn.

Every word that is looked for stands once in a dialogue, so that it cannot be found in the wrong place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lmflow.data.sample import Message, Sample

Call = Mapping[str, Any]
SYSTEM = Message("system", "Keep to the almanac.")
ASK, ASK_MORE, ASK_LAST = (
    Message("user", "Which harvest is due in Bergen?"),
    Message("user", "What of the orchards near Tromsdalen?"),
    Message("user", "Should somebody mend the fences?"),
)
SAY, SAY_MORE, SAY_LAST = "Barley ripens early.", "Pears follow later.", "Yes, before frost."


def offer(name: str, *arguments: str) -> Mapping[str, Any]:
    """A tool as a dialogue offers it."""
    fields = {each: {"type": "string", "description": f"the {each}"} for each in arguments}
    schema = {"type": "object", "properties": fields, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": "A lookup.", "parameters": schema}}


TOOLS = (offer("find_weather", "town", "unit"), offer("find_clock", "zone"))


def call(number: int, name: str, **arguments: Any) -> Call:
    """A call as an assistant makes it; the number makes its id, of the nine letters that some templates ask for."""
    return {"type": "function", "id": f"call0000{number}", "function": {"name": name, "arguments": arguments}}


def calling(*calls: Call, content: str = "", thinking: str | None = None) -> Message:
    return Message("assistant", content, tool_calls=calls, thinking=thinking)


def result(number: int, name: str, content: str) -> Message:
    return Message("tool", content, name=name, tool_call_id=f"call0000{number}")


def says(content: str, thought: str = "") -> Message:
    return Message("assistant", f"<think>\n{thought}\n</think>\n\n{content}" if thought else content)


WEATHER, CLOCK = call(1, "find_weather", town="Narvik", unit="kelvin"), call(2, "find_clock", zone="Lofoten")
COLD, NOON = result(1, "find_weather", "drizzle and gusts"), result(2, "find_clock", "half past eleven")
RECORDS: Mapping[str, tuple[Message, ...]] = {
    "one turn": (ASK, says(SAY)),
    "system": (SYSTEM, ASK, says(SAY)),
    "three turns": (ASK, says(SAY), ASK_MORE, says(SAY_MORE), ASK_LAST, says(SAY_LAST)),
    "unicode": (Message("user", "„Größe“ 你好?"), says("naïve — 🙂 好的。\n\n\tdéjà   vu")),
    "empty answer": (ASK, says("")),
    "thought in the last answer": (ASK, says(SAY), ASK_MORE, says(SAY_MORE, "Recall old ledgers.")),
    "thought in each answer": (ASK, says(SAY, "Count the sunny weeks."), ASK_MORE, says(SAY_MORE, "Recall ledgers.")),
    "thought beside content": (ASK, Message("assistant", SAY, thinking="Count the sunny weeks.")),
    "one call": (ASK, calling(WEATHER)),
    "call and result": (ASK, calling(WEATHER), COLD, says(SAY)),
    "parallel calls": (ASK, calling(WEATHER, CLOCK), COLD, NOON, says(SAY)),
    "text beside a call": (ASK, calling(WEATHER, content="Allow me a look."), COLD, says(SAY)),
    "two rounds of calls": (ASK, calling(WEATHER), COLD, calling(CLOCK), NOON, says(SAY)),
    "call, second question": (ASK, calling(WEATHER), COLD, says(SAY), ASK_MORE, says(SAY_MORE)),
    "thought beside a call": (ASK, calling(WEATHER, thinking="Skies matter."), COLD, says(SAY)),
    "tools unused": (ASK, says(SAY)),
}
"""Dialogues by name; those with calls, and the last, offer tools."""


def samples() -> Iterator[tuple[str, Sample]]:
    """Each dialogue as the sample that a data format would make."""
    for name, turns in RECORDS.items():
        offers = TOOLS if name == "tools unused" or any(turn.tool_calls for turn in turns) else ()
        yield name, Sample(turns, source=name, tools=offers)


def facts_of(turn: Message) -> list[str]:
    """All that a turn says: its thought, its content, and each call's name, arguments and values."""
    inside, closed, content = turn.content.partition("</think>")
    found = [turn.thinking or "", inside.replace("<think>", "") if closed else "", content if closed else inside]
    for each in turn.tool_calls:
        found.append(each["function"]["name"])
        found += [text for pair in each["function"]["arguments"].items() for text in pair]
    return [fact for fact in found if fact.strip()]


def squeezed(text: str) -> str:
    """The text without white space, which templates trim and add."""
    return "".join(text.split())


def place_of(fact: str, text: str) -> int | None:
    """Where a fact ends in a squeezed text, as it is or as JSON writes it; None where it is not in it."""
    for form in (fact, json.dumps(fact, ensure_ascii=False)[1:-1], json.dumps(fact)[1:-1], repr(fact)[1:-1]):
        begin = text.find(squeezed(form))
        if begin >= 0:
            return begin + len(squeezed(form))
    return None
