"""Fields of records before anything looks at them: some called otherwise, some left out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmflow.data.record import Record
from lmflow.errors import DataError

LOOKED_AT = 32
"""Records whose fields a misspelt name is compared with."""


def renamed(records: Iterable[Record | DataError], columns: Mapping[str, str]) -> Iterator[Record | DataError]:
    """The records with the fields that `columns` maps (ours to theirs) under our names.

    "messages.masked" and "messages.mask" are fields of each element of the list `messages`, or of an object; elements
    may lack them.
    """
    dotted = {mine: theirs for mine, theirs in columns.items() if _are_inside_one(mine, theirs)}
    for found in records:
        if isinstance(found, DataError) or not columns:
            yield found
            continue
        inside = {mine: theirs for mine, theirs in dotted.items() if theirs not in found.fields}
        record = _renamed_inside(found, inside) if inside else found
        outside = {mine: theirs for mine, theirs in columns.items() if mine not in inside}
        ours = {theirs: mine for mine, theirs in outside.items()}
        missing = [theirs for theirs in ours if theirs not in record.fields]
        if missing:
            fields = ", ".join(record.fields) or "no field"
            yield DataError(f"{record.source}: {missing[0]}: data.columns names it; the record has {fields}")
            continue
        kept = {name: value for name, value in record.fields.items() if name not in outside or name in ours}
        yield replace(record, fields={ours.get(name, name): value for name, value in kept.items()})


def _are_inside_one(mine: str, theirs: str) -> bool:
    """Whether two names may be those of a field of one list, or of one object."""
    return "." in mine and "." in theirs and mine.partition(".")[0] == theirs.partition(".")[0]


def _renamed_inside(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with fields of its turns, or of an object, under our names."""
    fields = dict(record.fields)
    for mine, theirs in columns.items():
        outer, _, key = theirs.partition(".")
        fields |= {outer: _each(fields[outer], key, mine.partition(".")[2])} if outer in fields else {}
    return replace(record, fields=fields)


def _each(value: Any, theirs: str, ours: str) -> Any:
    """The value, an object or a list of them, with its field `theirs` called `ours`."""
    if isinstance(value, list):
        return [_each(each, theirs, ours) for each in value]
    if not isinstance(value, Mapping) or theirs not in value:
        return value
    return {ours if name == theirs else name: each for name, each in value.items() if name != ours}


def without(records: Iterable[Record | DataError], ignored: Sequence[str]) -> Iterator[Record | DataError]:
    """The records without the fields that `ignored` names, as they are called in the file.

    "messages.weight" is the field `weight` of each element of the list `messages`, or of an object.
    """
    for record in records:
        if isinstance(record, DataError) or not ignored:
            yield record
            continue
        fields: Any = record.fields
        for field in ignored:
            fields = _without(fields, field)
        yield replace(record, fields=fields)


class FieldWatch:
    """Which of the fields that options name some record has: a name that none has is misspelt."""

    def __init__(self, options: Mapping[str, Sequence[str]]) -> None:
        self.options = options
        """The names by option."""
        self.met: set[str] = set()
        self.known: dict[str, None] = {}
        """Names of fields of the first records."""
        self._wanted = {name for names in options.values() for name in names}

    def over(self, records: Iterable[Record | DataError]) -> Iterator[Record | DataError]:
        """The records, looked at as they pass."""
        left = LOOKED_AT if self._wanted else 0
        for record in records:
            if isinstance(record, Record) and self._wanted:
                found = {name for name in self._wanted if _has(record.fields, name)}
                self.met |= found
                self._wanted -= found
                if left:
                    left -= 1
                    self.known |= dict.fromkeys(names_in(record.fields))
            yield record


def unmet(watches: Sequence[FieldWatch], who: str = "no record") -> list[str]:
    """That no record has a field, for each name that options have in vain, and what may be meant."""
    met = {name for watch in watches for name in watch.met}
    known = list(dict.fromkeys(name for watch in watches for name in watch.known))
    told = []
    for option, names in (watches[0].options if watches else {}).items():
        for name in names:
            if name not in met:
                near = difflib.get_close_matches(name, known, n=1)
                told.append(f"{option}: {who} has {name}" + (f"; did you mean {near[0]}?" if near else ""))
    return told


def _has(value: Any, field: str) -> bool:
    """Whether a value, or one of its elements, has the field, or the field of a field."""
    if isinstance(value, list):
        return any(_has(each, field) for each in value)
    if not isinstance(value, Mapping):
        return False
    outer, _, inner = field.partition(".")
    return field in value or bool(inner and outer in value and _has(value[outer], inner))


def names_in(value: Any, before: str = "", depth: int = 2) -> Iterator[str]:
    """The names of fields, and of fields of lists and objects in them, as `without` takes them."""
    if isinstance(value, list):
        for each in value:
            yield from names_in(each, before, depth)
    elif isinstance(value, Mapping) and depth:
        for name, each in value.items():
            yield f"{before}{name}"
            yield from names_in(each, f"{before}{name}.", depth - 1)


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
