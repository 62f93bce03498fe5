"""Formats of preferences: two answers of which one is better, or one that is wanted or not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lmflow.components import DataFormat
from lmflow.data.formats.dialogues import (
    SIDES,
    answer_field,
    as_message,
    completion_as_field,
    completion_of,
    prompt_as_field,
    prompt_of,
    sides_of,
)
from lmflow.data.formats.fields import bad, text_of, tools_of, turns_of, with_system
from lmflow.data.formats.labels import is_judged, label_of, labelled, labelled_dialogue, verdict
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError


class Preference(DataFormat):
    """Two answers to a prompt: {"prompt"?, "chosen", "rejected"}, each text or messages; without prompt, dialogues.

    The prompt may be called `question` or be `messages`; the answers `positive` and `negative`, or as in LMFlow's first
    DPO `response_j` and `response_k`. OpenAI's are `preferred_output` and `non_preferred_output`, to an `input`.
    """

    name = "preference"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Chosen and rejected, with a prompt or as messages."""
        sides = sides_of(record)
        if sides is None or "conversations" in record or PairedConversation.recognises(record):
            return False
        asked = {"prompt", "question", "messages"} & record.keys() or isinstance(record.get("input"), dict)
        return bool(asked) or isinstance(record[sides[0]], list)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The prompt with the chosen answer; with the rejected one in `rejected`."""
        sides = sides_of(record) or SIDES[0]
        asked, place = record, source
        if isinstance(record.get("input"), dict):
            asked, place = {**record["input"], **{side: record.get(side) for side in sides}}, f"{source}: input"
        prompt = self._prompt(asked, sides, place)
        if asked is not record and not prompt:
            raise bad(place, "messages", "a list of at least one turn", asked.get("messages"))
        chosen, rejected = (self._dialogue(prompt, record, field, source) for field in sides)
        return Sample(chosen, True, record, source, tools_of(asked, place), rejected)

    def _prompt(self, record: Mapping[str, Any], sides: tuple[str, str], source: str) -> tuple[Message, ...]:
        """What both answers are to; messages beside two whole dialogues are one of these."""
        for field in ("prompt", "question"):
            if record.get(field) is not None:
                return prompt_of({"prompt": record[field]}, source)
        if record.get("messages") is None or record["messages"] in [record.get(side) for side in sides]:
            return ()
        turns = turns_of(record, "messages", source, role="role", content="content")
        if turns[-1].role == "assistant":
            raise DataError(
                f"{source}: messages: end with an answer, and {sides[0]} stands beside them; leave one of them out "
                "with --data.ignore"
            )
        return turns

    def _dialogue(
        self, prompt: tuple[Message, ...], record: Mapping[str, Any], field: str, source: str
    ) -> tuple[Message, ...]:
        if not prompt and not isinstance(record.get(field), list):
            raise bad(source, field, "a list of turns, as there is no prompt", record.get(field))
        turns = completion_of(record, field, source)
        return with_system(record, after_prompt(prompt, turns), source)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The turns both dialogues begin with as the prompt. Raises DataError without a rejected dialogue."""
        shared = shared_turns(sample, self.name)
        made: dict[str, Any] = {
            "prompt": prompt_as_field(sample.messages[:shared]),
            "chosen": completion_as_field(sample.messages[shared:]),
            "rejected": completion_as_field(sample.rejected[shared:]),
        }
        return made | ({"tools": list(sample.tools)} if sample.tools else {})


class PairedTextToText(DataFormat):
    """Two texts after a prompt, without a template: {"prompt", "chosen", "rejected", "margin"?} (LMFlow); by name."""

    name = "paired_text_to_text"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The texts as they are."""
        prompt = Message("user", text_of(record, "prompt", source))
        chosen, rejected = (Message("assistant", text_of(record, field, source)) for field in ("chosen", "rejected"))
        return Sample((prompt, chosen), False, record, source, rejected=(prompt, rejected))

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Everything both begin with as the prompt. Raises DataError without a rejected dialogue."""
        shared = shared_turns(sample, self.name)
        parts = sample.messages[:shared], sample.messages[shared:], sample.rejected[shared:]
        texts = ("".join(turn.content for turn in part) for part in parts)
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))


class PairedConversation(DataFormat):
    """Two dialogues: {"chosen": {"messages", "system"?, "tools"?}, "rejected": {…}} (LMFlow paired_conversation)."""

    name = "paired_conversation"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Chosen and rejected that are objects with messages."""
        sides = [record.get(field) for field in ("chosen", "rejected")]
        return all(isinstance(side, dict) and "messages" in side for side in sides)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The chosen dialogue, the other in `rejected`."""
        sides = []
        for field in ("chosen", "rejected"):
            side = record.get(field)
            if not isinstance(side, dict):
                raise bad(source, field, "an object with messages", side, missing=field not in record)
            place = f"{source}: {field}"
            turns = turns_of(side, "messages", place, role="role", content="content")
            sides.append((with_system(side, turns, place), tools_of(side, place)))
        (chosen, tools), (rejected, others) = sides
        if tools != others:
            raise DataError(f"{source}: rejected.tools: they are not those of chosen")
        return Sample(chosen, True, record, source, tools, rejected)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Both dialogues. Raises DataError without a rejected one."""
        shared_turns(sample, self.name)
        tools = {"tools": list(sample.tools)} if sample.tools else {}
        sides = {"chosen": sample.messages, "rejected": sample.rejected}
        return {field: {"messages": [as_message(turn) for turn in turns], **tools} for field, turns in sides.items()}


class Kto(DataFormat):
    """An answer and whether it is wanted: {"prompt", "completion", "label"}, or {"messages", "label"} (KTO).

    The dialogue may be called `conversations`, the label `kto_tag`; it is true or false, 1 or 0, or a word for it.
    """

    name = "kto"
    includes = ("prompt", "messages", "conversation", "sharegpt")  # whose records lack a label, which is told of each

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A label beside a prompt with its answer, or beside a dialogue."""
        return is_judged(record) and sides_of(record) is None

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """A wanted answer with its prompt; of an unwanted one the prompt alone, the dialogue being the rejected one."""
        label = label_of(record, source)
        if label is None:
            error = bad(source, "label", "true or false", record.get("label"), missing="label" not in record)
            raise DataError(
                f"{error}, so nothing says whether the answer is wanted; give it one, or train all answers of the file "
                "with --data.ignore label"
            )
        turns = self._turns(record, source)
        _check_no_class(record, turns[-1], source)
        whole = Sample(with_system(record, turns, source), True, record, source, tools_of(record, source))
        return labelled(whole, label)

    def _turns(self, record: Mapping[str, Any], source: str) -> tuple[Message, ...]:
        if "messages" in record:
            return turns_of(record, "messages", source, role="role", content="content")
        if "conversations" in record:
            return turns_of(record, "conversations", source, role="from", content="value")
        answer = answer_field(record) or "completion"
        return (*prompt_of(record, source), *completion_of(record, answer, source))

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Prompt, completion and label. Raises DataError without a label."""
        if sample.label is None:
            raise DataError(f"{sample.source}: it has no label, which {self.name} needs")
        dialogue = labelled_dialogue(sample)
        prompt = replace(sample, messages=dialogue).prompt().messages
        made: dict[str, Any] = {
            "prompt": prompt_as_field(prompt),
            "completion": completion_as_field(dialogue[len(prompt) :]),
            "label": sample.label,
        }
        return made | ({"tools": list(sample.tools)} if sample.tools else {})


def _check_no_class(record: Mapping[str, Any], answer: Message, source: str) -> None:
    """Raise DataError where a label is the answer itself: a class that is to be learnt, whether good or bad."""
    label = record.get("label")
    if (
        isinstance(label, str)
        and label.strip().lower() == answer.content.strip().lower()
        and verdict(label) is not None
    ):
        raise DataError(
            f"{source}: label: is the answer itself, so it does not say whether it is wanted; leave it out with "
            "--data.ignore label"
        )


class HhRlhf(DataFormat):
    """Anthropic's HH-RLHF: {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected"?}."""

    name = "hh"
    marks: ClassVar[re.Pattern[str]] = re.compile(r"\n\n(Human|Assistant):[ ]?")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A chosen dialogue in Human/Assistant text."""
        chosen = record.get("chosen")
        return isinstance(chosen, str) and bool(cls.marks.match(chosen)) and "prompt" not in record

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The chosen dialogue, the other in `rejected`."""
        rejected = self._turns(record, "rejected", source) if record.get("rejected") is not None else ()
        return Sample(self._turns(record, "chosen", source), True, record, source, rejected=rejected)

    def _turns(self, record: Mapping[str, Any], field: str, source: str) -> tuple[Message, ...]:
        """One message per mark; turns of one speaker in a row are joined, as the data set has a few."""
        text = text_of(record, field, source)
        pieces = self.marks.split(text)
        if len(pieces) < 3 or pieces[0].strip():
            raise bad(source, field, "text that begins with a blank line and 'Human:'", text)
        turns: list[Message] = []
        for speaker, content in zip(pieces[1::2], pieces[2::2]):
            role = "user" if speaker == "Human" else "assistant"
            if turns and turns[-1].role == role:
                turns[-1] = Message(role, f"{turns[-1].content}\n\n{content.strip()}")
            else:
                turns.append(Message(role, content.strip()))
        return tuple(turns)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Both dialogues as text. Raises DataError for turns of others than user and assistant."""
        sides = {"chosen": sample.messages, "rejected": sample.rejected}
        return {field: self._text(sample, turns) for field, turns in sides.items() if turns}

    def _text(self, sample: Sample, turns: tuple[Message, ...]) -> str:
        speakers = {"user": "Human", "assistant": "Assistant"}
        others = sorted({turn.role for turn in turns} - speakers.keys())
        if others:
            raise DataError(f"{sample.source}: {self.name} holds turns of user and assistant, not {', '.join(others)}")
        return "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in turns)


def after_prompt(prompt: tuple[Message, ...], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt and the turns after it; some sets repeat it in each answer, with or without its system text."""
    asked, said = (each[1:] if each[:1] and each[0].role == "system" else each for each in (prompt, turns))
    if not prompt or said[: len(asked)] != asked:
        return (*prompt, *turns)
    system = turns[: len(turns) - len(said)] or prompt[: len(prompt) - len(asked)]
    return (*system, *said)


def shared_turns(sample: Sample, name: str) -> int:
    """How many turns both dialogues of a preference begin with; each has at least one of its own.

    Raises DataError for a sample without a rejected dialogue, and where one of the two continues the other.
    """
    if not sample.rejected:
        raise DataError(f"{sample.source}: it has no rejected answer, which {name} needs")
    pairs = zip(sample.messages, sample.rejected, strict=False)
    different = (index for index, (chosen, rejected) in enumerate(pairs) if chosen != rejected)
    shorter = min(len(sample.messages), len(sample.rejected))
    return next(different, shorter - 1)
