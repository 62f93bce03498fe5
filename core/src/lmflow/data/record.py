"""One record of a file, before anything knows what it means, and why what stands there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmflow.errors import DataError

UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""What texts in that encoding begin with."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, where it stands ("prompts.jsonl:12", "alpaca.json: record 3"), and the type its file declares."""

    fields: Mapping[str, Any]
    source: str
    declared: str | None = None

    @property
    def present(self) -> dict[str, Any]:
        """The fields that hold something; a null is a field that is not there."""
        return {name: value for name, value in self.fields.items() if value is not None}


Found = Iterator[Record | DataError]
"""The records of a place; one that cannot be used comes as the reason."""


def describe(value: Any) -> str:
    """A value's kind and a short look at it, for messages."""
    kinds = {str: "text", list: "a list", dict: "an object", bool: "a truth value", type(None): "nothing"}
    kind = kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return kind if value is None else f"{kind} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def record_of(value: Any, place: str, declared: str | None = None, repeated: str | None = None) -> Record | DataError:
    """A value as a record, or why it is none; `repeated` is a key that stands twice in an object of it."""
    if repeated is not None:
        return DataError(f"{place}: {repeated}: stands twice in one object, with different values; keep one of them")
    if not isinstance(value, dict):
        return DataError(f"{place}: expected an object with named fields, found {describe(value)}")
    return Record(value, place, declared)


def unreadable_number(error: ValueError) -> str:
    """What a whole number of thousands of digits is told as, which Python refuses to read."""
    return f"holds a number that cannot be read: {str(error).partition(';')[0]}"


def not_utf8(place: str, error: UnicodeDecodeError) -> str:
    """What bytes that are no text are told as."""
    if error.object[:2] in UTF16:
        return f"{place}: UTF-16; convert the file to UTF-8"
    return f"{place}: not UTF-8 (byte {error.object[error.start]:#04x}); convert the file"


def first_line(error: Exception) -> str:
    """The first line of what a library says went wrong."""
    return str(error).strip().partition("\n")[0]
