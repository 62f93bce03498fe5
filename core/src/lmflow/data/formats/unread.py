"""Which fields of records a format reads: those without which the same record would be another sample, or none.

A field may be read and make no difference, as a weight of 1 does: such a one is found by a value that it cannot have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmflow.components import DataFormat
from lmflow.data.formats.targets import WEIGHTS
from lmflow.data.record import Record
from lmflow.data.sample import Sample
from lmflow.errors import DataError

HELD: Mapping[str, str] = {
    "messages": "the dialogue as it is",
    "templated": "whether a chat template is put around it",
    "tools": "tools",
    "rejected": "the rejected answer",
    "label": "the label",
    "answers": "the other answers, or their scores",
}
"""What a sample says, and how a user calls it."""
MARGIN = "margin"
"""What aligners read of a preference's record themselves: by how much one answer is better."""
IMPOSSIBLE: Mapping[str, Any] = {"\0": "\0"}
"""A value that no field of a record has; where it makes no difference, the field is not looked at."""
NAMED = 10
"""Fields that a message names; more are counted."""


def different(one: Sample, other: Sample) -> list[str]:
    """The parts in which two samples do not say the same."""
    return [part for part in HELD if getattr(one, part) != getattr(other, part)]


def unread_fields(sample: Sample, origin: DataFormat) -> Iterator[str]:
    """Fields of the sample's record that say something, and not what a turn says, which `origin` does not look at."""
    record = sample.record
    contents = {turn.content for turn in sample.messages}
    for field in said_fields(record):
        rest = {name: each for name, each in record.items() if name != field}
        if field == "prompt" and isinstance(record[field], str) and record[field] in contents:
            continue  # some sets repeat in it what their dialogue begins with
        if _is_same(rest, sample, origin) and _is_same({**record, field: IMPOSSIBLE}, sample, origin):
            yield field
        else:
            yield from (
                f"{field}.{key}"
                for key in _keys_inside(record[field])
                if all(
                    _is_same({**record, field: _with(record[field], key, other)}, sample, origin)
                    for other in (None, IMPOSSIBLE)
                )
            )


def _is_same(record: Mapping[str, Any], sample: Sample, origin: DataFormat) -> bool:
    """Whether `origin` reads the record as the sample; not where it refuses it."""
    try:
        return not different(origin.sample(record, sample.source), sample)
    except Exception:  # a plugin's format may fail in other ways without a field that it needs
        return False


def _keys_inside(value: Any) -> list[str]:
    """The keys that say something in an object, or in a list of them, such as the turns of a dialogue."""
    inside = [value] if isinstance(value, Mapping) else value
    turns = inside if isinstance(inside, list) and all(isinstance(each, Mapping) for each in inside) else []
    return list(dict.fromkeys(key for turn in turns for key in said_fields(turn) if isinstance(key, str)))


def _with(value: Any, key: str, other: Any) -> Any:
    """The object, or each of a list that has the key, with another value for it; None for without it."""
    if isinstance(value, list):
        return [_with(each, key, other) for each in value]
    rest = {name: each for name, each in value.items() if name != key}
    return rest if other is None or key not in value else {**rest, key: other}


def said_fields(record: Mapping[str, Any]) -> list[str]:
    """Fields of a record that say something."""
    return [field for field, value in record.items() if value not in (None, "", [], {})]


def fields_read(origin: DataFormat, records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fields that `origin` reads in some of the records, and those that say something and are read in none.

    Among the latter are fields of turns, as in `messages.mood`.
    """
    said: dict[str, None] = {}
    of_turns: dict[str, None] = {}
    read: set[str] = set()
    for record in records:
        fields = said_fields(record.fields)
        said |= dict.fromkeys(fields)
        inner = [f"{field}.{key}" for field in fields for key in _keys_inside(record.fields[field])]
        of_turns |= dict.fromkeys(inner)
        try:
            sample = origin.sample(record.fields, record.source)
        except DataError:
            continue  # it is told of where all records are read
        unread = {*unread_fields(sample, origin)}
        read |= {*fields, *(name for name in inner if name.partition(".")[0] not in unread)} - unread
        read |= {MARGIN} if sample.rejected else set()
    if not read:
        return (), ()  # no record can be read, so nothing tells
    unread_turns = [name for name in of_turns if name not in read and name.partition(".")[0] in read]
    return tuple(field for field in said if field in read), (
        *(field for field in said if field not in read),
        *unread_turns,
    )


def listed(fields: Sequence[str]) -> str:
    """The fields by name, the first of many."""
    more = len(fields) - NAMED
    return ", ".join(fields[:NAMED]) + (f" and {more} more" if more > 0 else "")


def told_unread(fields: Sequence[str]) -> str:
    """That fields are not read, and what there is for one that may say how much its record counts."""
    told = f"not read: {listed(fields)}"
    if weight := next((field for field in fields if field in WEIGHTS), None):
        told += f" (records count alike, whatever {weight} says; --data.mix FILE=WEIGHT weights those of a file)"
    return told
