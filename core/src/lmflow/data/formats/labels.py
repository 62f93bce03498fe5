"""Labels of answers: whether an answer is wanted, in the words and numbers that records say it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmflow.data.formats.fields import ANSWERS
from lmflow.data.record import describe
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

LABELS = ("kto_tag", "label")
"""Fields that say whether an answer is wanted."""
WANTED = {
    *("true", "yes", "1", "good", "right", "correct", "positive", "wanted", "desirable", "desired", "chosen"),
    *("preferred", "accept", "accepted", "approve", "approved", "like", "liked", "up", "upvote", "upvoted"),
    *("thumbs-up", "thumbsup", "👍"),
}
UNWANTED = {
    *("false", "no", "0", "bad", "wrong", "incorrect", "negative", "unwanted", "undesirable", "undesired", "rejected"),
    *("dispreferred", "reject", "decline", "declined", "disapprove", "disapproved", "dislike", "disliked", "down"),
    *("downvote", "downvoted", "thumbs-down", "thumbsdown", "👎"),
}
WORDS = {**dict.fromkeys(WANTED, True), **dict.fromkeys(UNWANTED, False)}


def is_labelled(record: Mapping[str, Any]) -> bool:
    """Whether a record has a field for a label, whatever it says there."""
    return any(record.get(field) not in (None, "") for field in LABELS)


def is_judged(record: Mapping[str, Any]) -> bool:
    """Whether a record holds one answer and a label beside it."""
    asked = "prompt" in record and any(record.get(field) is not None for field in ANSWERS)
    return is_labelled(record) and (asked or bool({"messages", "conversations"} & record.keys()))


def verdict(value: Any) -> bool | None:
    """Whether a label calls its answer wanted: true or false, 1 or 0, or a word for it; None where it says neither."""
    if isinstance(value, str):
        return WORDS.get("-".join(value.lower().replace("_", " ").replace("-", " ").split()))
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def label_of(record: Mapping[str, Any], source: str, fields: tuple[str, ...] = LABELS) -> bool | None:
    """Whether the answer is wanted; None for a record without a label in `fields`.

    Raises DataError for a label that says neither, and for two that differ.
    """
    said = {field: record[field] for field in fields if record.get(field) not in (None, "")}
    found = {field: verdict(value) for field, value in said.items()}
    for field, wanted in found.items():
        if wanted is None:
            raise DataError(
                f"{source}: {field}: expected true or false, 1 or 0, or a word such as good or bad, found "
                f"{describe(said[field])}; if it is no label of the answer, leave it out with --data.ignore {field}"
            )
    if len(set(found.values())) > 1:
        raise DataError(f"{source}: {' and '.join(found)} do not agree; leave one of them out with --data.ignore FIELD")
    return next(iter(found.values()), None)


def labelled(sample: Sample, label: bool | None) -> Sample:
    """The sample of a record with this label; of an unwanted answer the prompt alone, its dialogue being the rejected.

    So what is learnt from `messages` is never what is unwanted.
    """
    if label is None:
        return sample
    whole = replace(sample, label=label)
    return whole if label else replace(whole.prompt(), rejected=whole.messages)


def labelled_dialogue(sample: Sample) -> tuple[Message, ...]:
    """The dialogue that a label is about; of a sample without one, its messages."""
    return sample.rejected if sample.label is False else sample.messages


def check_label(record: Mapping[str, Any], sample: Sample, name: str, again: Sample | None) -> None:
    """Raise DataError where a record labels its answer and the format does not look at that.

    `again` is the sample of the record without its labels, None where the format cannot read it so. A `label` that is
    no word for or against an answer is a field like any other, and beside a plain text it judges no answer.
    """
    if sample.label is not None or again is None or not _has_answer(sample):
        return
    plain = not sample.templated and len(sample.messages) == 1
    for field in LABELS:
        value = record.get(field)
        judges = value not in (None, "") if field == "kto_tag" else verdict(value) is not None and not plain
        if judges and sample == replace(again, record=sample.record):
            raise DataError(
                f"{sample.source}: {field}: {describe(value)} would say whether the answer is wanted, which {name} "
                f"does not read, so that it would be trained all the same; leave it out with --data.ignore {field}, or "
                "bring the records into the form of kto"
            )


def _has_answer(sample: Sample) -> bool:
    return any(turn.role == "assistant" for turn in sample.messages)
