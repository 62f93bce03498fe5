"""Which of several formats records look like."""

from __future__ import annotations

from collections.abc import Sequence

from lmflow.components import DataFormat
from lmflow.data.record import Record


def recognised_by(formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> list[type[DataFormat]]:
    """Formats that read every record, without those that another of them includes."""
    names = [{each.name for each in formats if each.recognises(record.fields)} for record in records]
    found = [
        each
        for each in formats
        if any(each.name in known for known in names) and all(known & {each.name, *each.includes} for known in names)
    ]
    included = {name for each in found for name in each.includes}
    return [each for each in found if each.name not in included]
