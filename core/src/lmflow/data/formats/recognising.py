"""Recognising what records mean: one format, or an error that says between which one has to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmflow.components import DataFormat
from lmflow.data.record import Record, describe
from lmflow.data.sample import Sample
from lmflow.errors import DataError

LOOKED_AT = 32
"""Records looked at to recognise a format."""


class Auto(DataFormat):
    """Recognise the format by looking at the records."""

    name = "auto"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Never called: `resolve_format` puts the format it recognises in this one's place."""
        raise DataError(f"{source}: the format was not recognised")


def resolve_format(data: DataFormat, formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> DataFormat:
    """The format to read `records` with: the one chosen, or for `auto` the only one that recognises them.

    A type that the file declares (LMFlow's container) decides. Raises DataError with the fields found and the
    formats installed when none or several recognise them, or when records differ in what they could be.
    """
    if not isinstance(data, Auto):
        return data
    looked_at = records[:LOOKED_AT]
    declared = looked_at[0].declared
    found = [each for each in formats if each.name == declared] if declared else _recognised_by(formats, looked_at)
    if declared and not found:
        raise DataError(_undeclared(declared, formats, looked_at[0]))
    if len(found) != 1:
        raise DataError(_unclear(found, formats, looked_at))
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


def _unclear(found: Sequence[type[DataFormat]], formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> str:
    """Why no format, or no single one, reads the records."""
    first = records[0]
    known = [sorted(each.name for each in formats if each.recognises(record.fields)) for record in records]
    other = next((index for index, names in enumerate(known) if names != known[0]), None)
    if not found and known[0] and other is not None:
        what = f"looks like {', '.join(known[other])}" if known[other] else f"has {_fields(records[other])}"
        return (
            f"{records[other].source}: {what}, and {first.source} like {', '.join(known[0])}: one file must hold one "
            "format. Name it with --data NAME if it is one."
        )
    names = ", ".join(sorted(each.name for each in (found or formats) if each.name != "auto"))
    how = f"could be any of {names}" if found else f"are none of the installed formats ({names})"
    return (
        f"{first.source}: records with {_fields(first)} {how}; name one with --data NAME, or say which field is which "
        "with --data.columns OURS=THEIRS."
    )


def _undeclared(declared: str, formats: Sequence[type[DataFormat]], first: Record) -> str:
    """That the type of LMFlow's container is none that is installed."""
    names = ", ".join(sorted(each.name for each in formats if each.name != "auto"))
    return (
        f"{first.source}: its file says type {describe(declared)}, which is none of the installed formats ({names}); "
        "name one with --data NAME"
    )


def _fields(record: Record) -> str:
    return ", ".join(record.fields) or "no field"
