"""Formats of dialogues: turns of a user and an assistant, rendered by the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lmflow.components import DataFormat
from lmflow.data.formats.fields import ANSWERS, bad, call_in, text_of, tools_of, turns_of, with_system
from lmflow.data.formats.labels import is_judged, label_of, labelled, labelled_dialogue
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError

OPENAI_SIDES = ("preferred_output", "non_preferred_output")
SIDES = (("chosen", "rejected"), ("positive", "negative"), ("response_j", "response_k"), OPENAI_SIDES)
"""Fields of the better and the worse of two answers; the third are those of LMFlow's first DPO."""


class Conversation(DataFormat):
    """A dialogue, with a system text and tools beside it: {"messages", "system"?, "tools"?} (LMFlow conversation)."""

    name = "conversation"
    includes = ("messages",)

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Messages with LMFlow's own fields beside them."""
        return _is_dialogue(record) and bool({"system", "conversation_id"} & record.keys())

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The messages, the system text first."""
        return _dialogue(record, "messages", source)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """LMFlow's fields: a call is the text of role `function`, what a tool answers of role `observation`."""
        system, turns = without_system(sample)
        made: dict[str, Any] = {"system": system} if system is not None else {"conversation_id": sample.source}
        if sample.tools:
            made["tools"] = [json.dumps(tool, ensure_ascii=False) for tool in sample.tools]
        return made | {"messages": [self._turn(turn) for turn in turns]}

    def _turn(self, turn: Message) -> Mapping[str, str]:
        if turn.tool_calls:
            return {"role": "function", "content": calls_as_text(turn)}
        return {"role": "observation" if turn.role == "tool" else turn.role, "content": turn.content}


class Messages(DataFormat):
    """OpenAI-style dialogues: {"messages": [{"role", "content", "tool_calls"?}], "tools"?}."""

    name = "messages"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Messages and none of LMFlow's own fields."""
        return _is_dialogue(record) and not Conversation.recognises(record)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The messages; contents may be lists of text parts."""
        return _dialogue(record, "messages", source)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The messages, and the tools if there are any."""
        made: dict[str, Any] = {"messages": [as_message(turn) for turn in sample.messages]}
        return made | ({"tools": list(sample.tools)} if sample.tools else {})


def _is_dialogue(record: Mapping[str, Any]) -> bool:
    """Whether a record holds messages, and none of the fields that make a preference, a label or completions of it."""
    return "messages" in record and "completions" not in record and not is_judged(record) and sides_of(record) is None


def _dialogue(
    record: Mapping[str, Any], field: str, source: str, *, role: str = "role", content: str = "content"
) -> Sample:
    """The turns of a field, with the system's text, the tools and the rejected answer that stand beside them."""
    turns = turns_of(record, field, source, role=role, content=content)
    rejected = rejected_of(record, turns, source)
    other = with_system(record, rejected, source) if rejected else ()
    return Sample(with_system(record, turns, source), True, record, source, tools_of(record, source), other)


def rejected_of(record: Mapping[str, Any], turns: tuple[Message, ...], source: str) -> tuple[Message, ...]:
    """The dialogue that `turns` are preferred to, as ms-swift has it beside them; none where it has none.

    That is `rejected_messages`, or `rejected_response` in the place of the last answer. Raises DataError where the
    turns do not end with one.
    """
    if record.get("rejected_messages") is not None:
        return turns_of(record, "rejected_messages", source, role="role", content="content")
    if record.get("rejected_response") is None:
        return ()
    if turns[-1].role != "assistant":
        raise DataError(
            f"{source}: rejected_response: stands in the place of the last answer, and the last turn is of the "
            f"{turns[-1].role}"
        )
    return (*turns[:-1], *completion_of(record, "rejected_response", source))


def sides_of(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fields of a record that hold the better and the worse of two answers, None where it has no two."""
    return next((sides for sides in SIDES if record.keys() >= {*sides}), None)


class ShareGpt(DataFormat):
    """ShareGPT dialogues: {"conversations": [{"from", "value"}], "system"?, "tools"?, "chosen"?, "rejected"?}."""

    name = "sharegpt"
    speakers: ClassVar[Mapping[str, str]] = {
        "system": "system",
        "user": "human",
        "assistant": "gpt",
        "tool": "observation",
    }

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Conversations of from/value turns, without a label."""
        return "conversations" in record and not (is_judged(record) and sides_of(record) is None)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The turns in order; a preferred answer in `chosen` is last, one in `rejected` stands in its place."""
        whole = _dialogue(record, "conversations", source, role="from", content="value")
        chosen, rejected = (self._alternative(record, field, source) for field in ("chosen", "rejected"))
        other = (*whole.messages, *rejected) if rejected else whole.rejected
        return replace(whole, messages=(*whole.messages, *chosen), rejected=other)

    def _alternative(self, record: Mapping[str, Any], field: str, source: str) -> tuple[Message, ...]:
        if field not in record:
            return ()
        return turns_of({field: [record[field]]}, field, source, role="from", content="value")

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The turns, the last two of a preference beside them. Raises DataError where more than those differ."""
        system, turns = without_system(sample)
        made: dict[str, Any] = {"system": system} if system is not None else {}
        if sample.tools:
            made["tools"] = json.dumps(list(sample.tools), ensure_ascii=False)
        if sample.rejected:
            if sample.rejected[:-1] != sample.messages[:-1]:
                raise DataError(f"{sample.source}: {self.name} holds preferences that differ in the last turn alone")
            made |= {"chosen": self._turn(sample.messages[-1]), "rejected": self._turn(sample.rejected[-1])}
            turns = turns[:-1]
        return made | {"conversations": [self._turn(turn) for turn in turns]}

    def _turn(self, turn: Message) -> Mapping[str, str]:
        if turn.tool_calls:
            return {"from": "function_call", "value": calls_as_text(turn)}
        return {"from": self.speakers[turn.role], "value": turn.content}


class Alpaca(DataFormat):
    """Instructions: {"instruction", "input"?, "output", "system"?, "history"?, "kto_tag"?} (Stanford Alpaca)."""

    name = "alpaca"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """An instruction and an output."""
        return {"instruction", "output"} <= record.keys()

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Instruction and input as the user's turn, a blank line between them; earlier turns from `history`."""
        turns = []
        history = record.get("history") or []
        if not isinstance(history, list):
            raise bad(source, "history", "a list of pairs [question, answer]", history)
        for index, pair in enumerate(history):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)):
                raise bad(source, f"history[{index}]", "a pair of texts [question, answer]", pair)
            turns += [Message("user", pair[0]), Message("assistant", pair[1])]
        instruction = text_of(record, "instruction", source)
        given = text_of(record, "input", source) if record.get("input") else ""
        turns.append(Message("user", "\n\n".join(part for part in (instruction, given) if part)))
        turns.append(Message("assistant", text_of(record, "output", source)))
        whole = Sample(with_system(record, tuple(turns), source), True, record, source)
        return labelled(whole, label_of(record, source, ("kto_tag",)))

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Question and answer, earlier ones as history. Raises DataError where turns do not alternate."""
        system, turns = without_system(replace(sample, messages=labelled_dialogue(sample)))
        roles = [turn.role for turn in turns]
        if roles != ["user", "assistant"] * (len(turns) // 2) or not turns:
            raise DataError(f"{sample.source}: {self.name} holds questions and answers in turn, not {', '.join(roles)}")
        contents = [turn.content for turn in turns]
        made: dict[str, Any] = {"instruction": contents[-2], "input": "", "output": contents[-1]}
        if system is not None:
            made["system"] = system
        if contents[:-2]:
            made["history"] = [list(pair) for pair in zip(contents[:-2:2], contents[1:-2:2], strict=True)]
        return made if sample.label is None else {**made, "kto_tag": sample.label}


class Prompts(DataFormat):
    """Prompts, with or without an answer: {"prompt": text or messages, "completion"|"response"|"answer"?}."""

    name = "prompt"
    answers: ClassVar[tuple[str, ...]] = ANSWERS
    not_alone: ClassVar[frozenset[str]] = frozenset(each for sides in SIDES for each in sides) | {"completions"}

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A prompt that comes with no preference and no label, nor as the first turn of messages."""
        alone = "prompt" in record and not cls.not_alone & record.keys()
        return alone and not is_judged(record) and not repeats_messages(record)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """A user's turn (or the messages given), then the answer if there is one; calls of the tools that are offered
        may be JSON. Of a list of texts the first is the answer, and all are the sample's `answers`."""
        turns, tools = with_system(record, prompt_of(record, source), source), tools_of(record, source)
        answer = answer_field(record)
        if answer is None or turns[-1].role == "assistant":
            return Sample(turns, True, record, source, tools)
        if calls := calls_of_tools(record[answer], tools):
            return Sample((*turns, Message("assistant", "", tool_calls=calls)), True, record, source, tools)
        several = texts_in(record[answer])
        said = {answer: several[0]} if several else as_text(record, answer)
        answers = tuple(map(Answer, several)) if len(several) > 1 else ()
        return Sample((*turns, *completion_of(said, answer, source)), True, record, source, tools, answers=answers)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The prompt as text where it is one user's turn, else as messages; the answer as `completion`."""
        prompt, answer = sample.prompt().messages, sample.messages[len(sample.prompt().messages) :]
        made: dict[str, Any] = {"prompt": prompt_as_field(prompt)}
        if answer:
            made["completion"] = [each.text for each in sample.answers] or completion_as_field(answer)
        return made | ({"tools": list(sample.tools)} if sample.tools else {})


def as_text(record: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """The record with a number in `field` as text: answers to check against are often that."""
    return {**record, field: str(record[field])} if is_number(record[field]) else record


def texts_in(value: Any) -> list[str]:
    """The texts and numbers of a list of such, as texts; none for any other value."""
    if not isinstance(value, list) or not all(isinstance(each, str) or is_number(each) for each in value):
        return []
    return list(map(str, value))


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def answer_field(record: Mapping[str, Any]) -> str | None:
    """The field that holds the answer to a prompt, None where there is none."""
    return next((field for field in ANSWERS if record.get(field) is not None), None)


def calls_of_tools(value: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The calls of the tools offered that an answer is, as JSON or its text; none for any other answer."""
    offered = {tool["function"]["name"] for tool in tools}
    if not offered or not isinstance(value, str | list):
        return ()
    try:
        calls = call_in(value if isinstance(value, str) else json.dumps(value))
    except (TypeError, RecursionError):
        return ()
    return calls if all(call["function"]["name"] in offered for call in calls) else ()


def repeats_messages(record: Mapping[str, Any]) -> bool:
    """Whether the prompt of a record is one of its messages, or the first of them."""
    prompt, turns = record.get("prompt"), record.get("messages")
    if not isinstance(turns, list):
        return False
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    return prompt in contents or (isinstance(prompt, list) and turns[: len(prompt)] == prompt)


def prompt_of(record: Mapping[str, Any], source: str) -> tuple[Message, ...]:
    """The field `prompt`: messages, or the text of a user."""
    if isinstance(record.get("prompt"), list):
        return turns_of(record, "prompt", source, role="role", content="content")
    return (Message("user", text_of(record, "prompt", source)),)


def completion_of(record: Mapping[str, Any], field: str, source: str) -> tuple[Message, ...]:
    """An answer: messages, a single one, or the text of an assistant."""
    value = record.get(field)
    if isinstance(value, dict) and {"role", "from"} & value.keys():
        value = [value]
    if isinstance(value, list):
        return turns_of({field: value}, field, source, role="role", content="content")
    return (Message("assistant", text_of(record, field, source)),)


def prompt_as_field(prompt: tuple[Message, ...]) -> Any:
    """What `prompt_of` reads as these turns."""
    alone = len(prompt) == 1 and prompt[0].role == "user"
    return prompt[0].content if alone else [as_message(turn) for turn in prompt]


def completion_as_field(answer: tuple[Message, ...]) -> Any:
    """What `completion_of` reads as these turns."""
    text = answer[0].content
    plain = answer == (Message("assistant", text, answer[0].images),) and not call_in(text)
    return text if plain else [as_message(turn) for turn in answer]


def as_message(turn: Message) -> dict[str, Any]:
    """A turn in OpenAI's form."""
    made: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        made["tool_calls"] = [dict(call) for call in turn.tool_calls]
    beside = {"reasoning_content": turn.thinking, "name": turn.name, "tool_call_id": turn.tool_call_id}
    made |= {field: value for field, value in beside.items() if value is not None}
    return made if turn.is_target else {**made, "loss": False}


def calls_as_text(turn: Message) -> str:
    """The calls of a turn as the JSON text that stands for them; the turn's own text where it holds none."""
    calls = [call["function"] for call in turn.tool_calls]
    text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    return text if call_in(text) else turn.content


def without_system(sample: Sample) -> tuple[str | None, tuple[Message, ...]]:
    """The system's text, if the first turn is its, and the other turns."""
    first = sample.messages[0] if sample.messages else None
    if first is not None and first.role == "system" and first.content:
        return first.content, sample.messages[1:]
    return None, sample.messages
