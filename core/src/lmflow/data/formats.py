"""The record formats of the core: what the fields of a record mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from lmflow.components import DataFormat
from lmflow.data.records import Record, describe
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

LOOKED_AT = 32
"""Records looked at to recognise a format."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "assistant",  # LMFlow: the call an assistant makes
    "function_call": "assistant",
    "observation": "tool",
}


class Auto(DataFormat):
    """Recognise the format by looking at the records."""

    name = "auto"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Never called: `resolve_format` puts the format it recognises in this one's place."""
        raise DataError(f"{source}: the format was not recognised")


class TextOnly(DataFormat):
    """Plain text, all of it trained: {"text"} (LMFlow text_only, .txt files)."""

    name = "text_only"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A text and no other field that would give it another meaning."""
        others = {"messages", "input", "prompt", "instruction", "image", "images"}
        return "text" in record and not others & record.keys()

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """One untemplated message, which is trained whole."""
        return Sample((Message("assistant", text_of(record, "text", source)),), False, record, source)


class TextToText(DataFormat):
    """An input and the output to learn, without a template: {"input", "output"} (LMFlow text2text)."""

    name = "text2text"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Input and output without an instruction."""
        return {"input", "output"} <= record.keys() and "instruction" not in record

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Input and output as they are, the loss on the output."""
        question = Message("user", text_of(record, "input", source))
        answer = Message("assistant", text_of(record, "output", source))
        return Sample((question, answer), False, record, source)


class Conversation(DataFormat):
    """A dialogue with an optional system text beside it: {"messages", "system"?} (LMFlow conversation)."""

    name = "conversation"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Messages with LMFlow's own fields beside them."""
        return "messages" in record and bool({"system", "conversation_id"} & record.keys())

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The messages, the system text first."""
        turns = turns_of(record, "messages", source, role="role", content="content")
        if record.get("system"):
            turns = (Message("system", text_of(record, "system", source)), *turns)
        return Sample(turns, True, record, source)


class Messages(DataFormat):
    """OpenAI-style dialogues: {"messages": [{"role", "content"}]}."""

    name = "messages"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Messages and none of LMFlow's own fields."""
        return "messages" in record and not Conversation.recognises(record)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The messages; contents may be lists of text parts."""
        return Sample(turns_of(record, "messages", source, role="role", content="content"), True, record, source)


class ShareGpt(DataFormat):
    """ShareGPT dialogues: {"conversations": [{"from", "value"}], "system"?}; a preferred answer in "chosen" is last."""

    name = "sharegpt"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Conversations of from/value turns."""
        return "conversations" in record

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The turns in order."""
        turns = turns_of(record, "conversations", source, role="from", content="value")
        if record.get("system"):
            turns = (Message("system", text_of(record, "system", source)), *turns)
        if "chosen" in record:
            chosen = {"chosen": [record["chosen"]]}
            turns = (*turns, *turns_of(chosen, "chosen", source, role="from", content="value"))
        return Sample(turns, True, record, source)


class Alpaca(DataFormat):
    """Instructions: {"instruction", "input"?, "output", "system"?, "history"?} (Stanford Alpaca)."""

    name = "alpaca"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """An instruction and an output."""
        return {"instruction", "output"} <= record.keys()

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Instruction and input as the user's turn, a blank line between them; earlier turns from `history`."""
        turns = [Message("system", text_of(record, "system", source))] if record.get("system") else []
        history = record.get("history") or []
        if not isinstance(history, list):
            raise bad(source, "history", "a list of pairs [question, answer]", history)
        for index, pair in enumerate(history):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
                raise bad(source, f"history[{index}]", "a pair of texts [question, answer]", pair)
            turns += [Message("user", pair[0]), Message("assistant", pair[1])]
        instruction = text_of(record, "instruction", source)
        given = text_of(record, "input", source) if record.get("input") else ""
        turns.append(Message("user", f"{instruction}\n\n{given}" if given else instruction))
        turns.append(Message("assistant", text_of(record, "output", source)))
        return Sample(tuple(turns), True, record, source)


class Prompts(DataFormat):
    """Prompts, with or without an answer: {"prompt": text or messages, "completion"|"response"|"answer"?}."""

    name = "prompt"
    answers: ClassVar[tuple[str, ...]] = ("completion", "response", "answer")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A prompt that does not come with a preference."""
        return "prompt" in record and not {"chosen", "rejected"} & record.keys()

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """A user's turn (or the messages given), then the answer if there is one."""
        if isinstance(record.get("prompt"), list):
            turns = turns_of(record, "prompt", source, role="role", content="content")
        else:
            turns = (Message("user", text_of(record, "prompt", source)),)
        answer = next((field for field in self.answers if record.get(field) is not None), None)
        if answer and turns[-1].role != "assistant":
            turns = (*turns, Message("assistant", text_of(record, answer, source)))
        return Sample(turns, True, record, source)


class HhRlhf(DataFormat):
    """Anthropic's HH-RLHF: {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected"?}; the chosen dialogue is used."""

    name = "hh"
    marks: ClassVar[re.Pattern[str]] = re.compile(r"\n\n(Human|Assistant):[ ]?")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A chosen dialogue in Human/Assistant text."""
        chosen = record.get("chosen")
        return isinstance(chosen, str) and bool(cls.marks.match(chosen))

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """One message per mark; turns of one speaker in a row are joined, as the data set has a few."""
        text = text_of(record, "chosen", source)
        pieces = self.marks.split(text)
        if len(pieces) < 3 or pieces[0].strip():
            raise bad(source, "chosen", "text that begins with a blank line and 'Human:'", text)
        turns: list[Message] = []
        for speaker, content in zip(pieces[1::2], pieces[2::2]):
            role = "user" if speaker == "Human" else "assistant"
            if turns and turns[-1].role == role:
                turns[-1] = Message(role, f"{turns[-1].content}\n\n{content.strip()}")
            else:
                turns.append(Message(role, content.strip()))
        return Sample(tuple(turns), True, record, source)


FORMATS: tuple[type[DataFormat], ...] = (
    Auto,
    TextOnly,
    TextToText,
    Conversation,
    Messages,
    ShareGpt,
    Alpaca,
    Prompts,
    HhRlhf,
)


def resolve_format(data: DataFormat, formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> DataFormat:
    """The format to read `records` with: the one chosen, or for `auto` the only one that recognises them.

    A type that the file declares (LMFlow's container) decides. Raises DataError with the fields found and the
    formats installed when none or several recognise them.
    """
    if not isinstance(data, Auto):
        return data
    looked_at = records[:LOOKED_AT]
    declared = looked_at[0].declared
    found = [each for each in formats if each.name == declared] if declared else []
    if not found:
        found = _recognised_by(formats, looked_at)
    if len(found) != 1:
        names = ", ".join(sorted(each.name for each in (found or formats) if each.name != "auto"))
        how = f"could be any of {names}" if found else f"are none of the installed formats ({names})"
        fields = ", ".join(looked_at[0].fields) or "no field"
        raise DataError(f"{looked_at[0].source}: records with {fields} {how}; name one with --data NAME.")
    return found[0].model_validate(data.model_dump())


def _recognised_by(formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> list[type[DataFormat]]:
    """Formats that read every record, without those that another of them includes."""
    names = [{each.name for each in formats if each.recognises(record.fields)} for record in records]
    found = [
        each
        for each in formats
        if any(each.name in known for known in names) and all(known & {each.name, *each.includes} for known in names)
    ]
    included = {name for each in found for name in each.includes}
    return [each for each in found if each.name not in included]


def text_of(record: Mapping[str, Any], field: str, source: str) -> str:
    """A field that must be text. Raises DataError saying what it is instead."""
    value = record.get(field)
    if not isinstance(value, str):
        raise bad(source, field, "text", value, missing=field not in record)
    return value


def turns_of(record: Mapping[str, Any], field: str, source: str, *, role: str, content: str) -> tuple[Message, ...]:
    """A field that must be a list of turns, with their roles in this project's words."""
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise bad(source, field, "a list of at least one turn", value, missing=field not in record)
    turns = []
    for index, turn in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(turn, dict):
            raise bad(source, place, f"an object with {role} and {content}", turn)
        known = ROLES.get(str(turn.get(role)))
        if known is None:
            raise bad(source, f"{place}.{role}", f"one of {', '.join(ROLES)}", turn.get(role), missing=role not in turn)
        turns.append(Message(known, _content(turn.get(content), source, f"{place}.{content}")))
    return tuple(turns)


def _content(value: Any, source: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_parts(value, source, place))
    raise bad(source, place, "text, or a list of text parts", value)


def _parts(parts: Sequence[Any], source: str, place: str) -> Iterable[str]:
    for index, part in enumerate(parts):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise bad(source, f"{place}[{index}]", 'a text part {"type": "text", "text": …}', part)
        yield part["text"]


def bad(source: str, field: str, expected: str, found: Any, *, missing: bool = False) -> DataError:
    """The error for a malformed field."""
    what = "it is missing" if missing else f"found {describe(found)}"
    return DataError(f"{source}: {field}: expected {expected}, {what}")
