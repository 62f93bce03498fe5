"""Which of several formats records look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmflow.components import DataFormat
from lmflow.data.record import Record


def recognised_by(formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> list[type[DataFormat]]:
    """Formats that read every record, without those that another of them includes; by fields that are null last."""
    found = _of_names(formats, [_names(formats, record.fields) for record in records])
    if len(found) == 1:
        return found
    return _of_names(formats, [_names(formats, record.present) for record in records]) or found


def _names(formats: Sequence[type[DataFormat]], fields: Mapping[str, Any]) -> set[str]:
    return {each.name for each in formats if each.recognises(fields)}


def _of_names(formats: Sequence[type[DataFormat]], names: Sequence[set[str]]) -> list[type[DataFormat]]:
    """The formats that are among the names of every record, or include one that is."""
    found = [
        each
        for each in formats
        if any(each.name in known for known in names) and all(known & {each.name, *each.includes} for known in names)
    ]
    included = {name for each in found for name in each.includes}
    return [each for each in found if each.name not in included]
