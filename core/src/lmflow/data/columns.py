"""Fields of records before anything looks at them: some called otherwise, some left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmflow.data.record import Record
from lmflow.errors import DataError


def renamed(records: Iterable[Record | DataError], columns: Mapping[str, str]) -> Iterator[Record | DataError]:
    """The records with the fields that `columns` maps (ours to theirs) under our names."""
    ours = {theirs: mine for mine, theirs in columns.items()}
    for record in records:
        if isinstance(record, DataError) or not ours:
            yield record
            continue
        missing = [theirs for theirs in ours if theirs not in record.fields]
        if missing:
            fields = ", ".join(record.fields) or "no field"
            yield DataError(f"{record.source}: {missing[0]}: data.columns names it; the record has {fields}")
            continue
        kept = {name: value for name, value in record.fields.items() if name not in columns or name in ours}
        fields_of = {ours.get(name, name): value for name, value in kept.items()}
        yield replace(record, fields=fields_of)


def without(records: Iterable[Record | DataError], ignored: Sequence[str]) -> Iterator[Record | DataError]:
    """The records without the fields that `ignored` names, as they are called in the file.

    "messages.weight" is the field `weight` of each element of the list `messages`, or of an object.
    """
    for record in records:
        if isinstance(record, DataError) or not ignored:
            yield record
        else:
            fields: Any = record.fields
            for field in ignored:
                fields = _without(fields, field)
            yield replace(record, fields=fields)


def _without(value: Any, field: str) -> Any:
    """The value without the field, or the field of a field; one that has none as it is."""
    if isinstance(value, list):
        return [_without(each, field) for each in value]
    if not isinstance(value, Mapping):
        return value
    if field in value:
        return {name: each for name, each in value.items() if name != field}
    outer, _, inner = field.partition(".")
    return {name: _without(each, inner) if name == outer and inner else each for name, each in value.items()}
