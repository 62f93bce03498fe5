"""Formats of texts that no chat template is put around."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from lmflow.components import DataFormat
from lmflow.data.formats.fields import bad, text_of
from lmflow.data.formats.labels import label_of, labelled, labelled_dialogue
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError

Against = Literal["worst", "next"]
AGAINST: Any = Field("worst", description="What the best answer is preferred to: the worst of them, or the next best.")


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

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The text."""
        return {"text": "".join(turn.content for turn in sample.messages)}


class TextToText(DataFormat):
    """An input and the output to learn, without a template: {"input", "output"} (LMFlow text2text)."""

    name = "text2text"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Input and output without an instruction."""
        whole = {"input", "output"} <= record.keys() and "instruction" not in record
        return whole and not isinstance(record["output"], list)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Input and output as they are, the loss on the output."""
        question = Message("user", text_of(record, "input", source))
        answer = Message("assistant", text_of(record, "output", source))
        return labelled(Sample((question, answer), False, record, source), label_of(record, source, ("kto_tag",)))

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """Everything before the last turn as the input. Raises DataError where that is no answer."""
        made = {"input": _before_answer(sample), "output": labelled_dialogue(sample)[-1].content}
        return made if sample.label is None else {**made, "kto_tag": sample.label}


class TextToTextList(DataFormat):
    """An input and several outputs: {"input", "output": [text, …]} (LMFlow text_to_textlist); the first is trained."""

    name = "text_to_textlist"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """An input and a list of texts."""
        output = record.get("output")
        return "input" in record and isinstance(output, list) and all(isinstance(each, str) for each in output)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The input and its first output; all of them are the sample's `answers`."""
        outputs = _outputs(record, source)
        answers = tuple(Answer(text_of({place: each}, place, source)) for place, each in outputs)
        return _answered(record, source, answers, answers[0])

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """All answers, without their scores."""
        answers = [answer.text for answer in sample.answers] or [labelled_dialogue(sample)[-1].content]
        return {"input": _before_answer(sample), "output": answers}


class TextToScoredTextList(DataFormat):
    """An input and outputs with scores: {"input", "output": [{"text", "score"}, …]}; the best is trained (LMFlow).

    For aligners that compare two answers, another is the rejected one where its score is lower.
    """

    name = "text_to_scored_textlist"

    against: Against = AGAINST

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """An input and a list of objects."""
        output = record.get("output")
        return "input" in record and isinstance(output, list) and any(isinstance(each, dict) for each in output)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The input and the output of the highest score, the first of equals; all of them are its `answers`."""
        answers = tuple(_scored(each, place, source) for place, each in _outputs(record, source))
        best, other = compared(answers, self.against)
        return _answered(record, source, answers, best, other)

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """All answers with their scores. Raises DataError where one has none."""
        if not sample.answers or any(answer.score is None for answer in sample.answers):
            raise DataError(f"{sample.source}: it has no scores, which {self.name} needs")
        outputs = [{"score": answer.score, "text": answer.text} for answer in sample.answers]
        return {"input": _before_answer(sample), "output": outputs}


class FloatOnly(DataFormat):
    """Numbers without texts: {"value"} (LMFlow float_only): what a reward gives, and nothing to train on."""

    name = "float_only"

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A number and nothing else."""
        return record.keys() == {"value"}

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Raises DataError: a number is no text. In a reward of your own such records are what you return."""
        raise DataError(
            f"{source}: value: records of float_only hold rewards and no text, so there is nothing to train on; a "
            "reward is chosen with --reward, as in --reward python:module:function"
        )


def _before_answer(sample: Sample) -> str:
    """The texts before the answer. Raises DataError for a sample that does not end with one."""
    turns = labelled_dialogue(sample)
    if turns[-1].role != "assistant":
        raise DataError(f"{sample.source}: it has no answer, which a record of an input and its output needs")
    return "".join(turn.content for turn in turns[:-1])


def _outputs(record: Mapping[str, Any], source: str) -> list[tuple[str, Any]]:
    """The outputs of a record, each with its place."""
    outputs = record.get("output")
    if not isinstance(outputs, list) or not outputs:
        raise bad(source, "output", "a list of at least one output", outputs, missing="output" not in record)
    return [(f"output[{index}]", each) for index, each in enumerate(outputs)]


def _scored(value: Any, place: str, source: str) -> Answer:
    if not isinstance(value, dict):
        raise bad(source, place, "an object with score and text", value)
    score = value.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise bad(source, f"{place}.score", "a finite number", score, missing="score" not in value)
    return Answer(text_of({f"{place}.text": value.get("text")}, f"{place}.text", source), float(score))


def _answered(
    record: Mapping[str, Any], source: str, answers: tuple[Answer, ...], best: Answer, other: Answer | None = None
) -> Sample:
    asked = Message("user", text_of(record, "input", source))
    rejected = (asked, Message("assistant", other.text)) if other else ()
    turns = (asked, Message("assistant", best.text))
    return Sample(turns, False, record, source, rejected=rejected, answers=answers)


def compared(answers: Sequence[Answer], against: str) -> tuple[Answer, Answer | None]:
    """The best of scored answers, the first of equals, and one that is worse: the worst, or the next best.

    None for the second where no other text has a lower score.
    """
    ranked = sorted(answers, key=lambda answer: -(answer.score or 0.0))
    best = ranked[0]
    worse = [each for each in ranked if each.score != best.score and each.text != best.text]
    return best, (worse[-1] if against == "worst" else worse[0]) if worse else None
