"""Labels of answers: whether an answer is wanted, in the words and numbers that records say it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmflow.data.formats.fields import ANSWERS
from lmflow.data.formats.targets import not_learnt
from lmflow.data.record import Record, describe
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.components import DataFormat

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


def read_record(kind: DataFormat, record: Record) -> Sample:
    """The sample of a record. Raises DataError for what the format cannot use, and for what says that the answer is not
    to be learnt and would be ignored.

    A `label` that is no word for or against an answer is a field like any other, and beside a plain text it judges no
    answer; `kto_tag` always does.
    """
    sample = kind.sample(record.fields, record.source)
    fields = _judging(record.fields, sample)
    if fields and _reads_without(fields, kind, record, sample):
        field, value = fields[0], describe(record.fields[fields[0]])
        raise DataError(
            f"{record.source}: {field}: {value} would say whether the answer is to be learnt, which {kind.name} does "
            f"not read, so that it would be trained all the same; leave it out with --data.ignore {field}, or bring "
            "the records into the form of kto"
        )
    return sample


def _judging(record: Mapping[str, Any], sample: Sample) -> list[str]:
    """Fields of a record beside an answer that say whether it is wanted, or that it is not to be learnt."""
    if not any(turn.role == "assistant" for turn in sample.messages):
        return []
    plain = not sample.templated and len(sample.messages) == 1
    found = not_learnt(record)
    if sample.label is None and not plain and verdict(record.get("label")) is not None:
        found = ["label", *found]
    if sample.label is None and record.get("kto_tag") not in (None, ""):
        found = ["kto_tag", *found]
    return found


def _reads_without(fields: Sequence[str], kind: DataFormat, record: Record, sample: Sample) -> bool:
    """Whether the record without these fields is the same sample, so that the format does not look at them."""
    rest = {name: value for name, value in record.fields.items() if name not in fields}
    try:
        return replace(kind.sample(rest, record.source), record=sample.record) == sample
    except Exception:  # a plugin's format may fail in other ways without a field that it needs
        return False
