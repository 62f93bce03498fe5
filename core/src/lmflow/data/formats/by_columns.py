"""A JSON object of equally long lists, which is a table by columns: how to write it as records."""

from __future__ import annotations

import shlex
from pathlib import Path

from lmflow.components import DataFormat
from lmflow.data.formats.advice import way_to_read
from lmflow.data.formats.candidates import recognised_by
from lmflow.data.formats.labels import read_record
from lmflow.data.formats.recognising import Formats
from lmflow.data.record import Record
from lmflow.errors import DataError

PROGRAM = (
    "import json,sys; t=json.load(open(sys.argv[1],encoding='utf-8')); "
    "[print(json.dumps(dict(zip(t,r)))) for r in zip(*t.values())]"
)
"""Writes the rows of such a file, one a line."""
TRIED = 32
"""Rows that are read for trial."""


def advice_on_columns(record: Record, formats: Formats, path: str) -> str | None:
    """What a file that holds this record alone is, and the command that writes its rows, which have been read so.

    None where it is no table by columns, where it can be read as one record, and where its rows cannot be read.
    """
    rows = rows_of(record)
    if not rows or _is_read([record], formats):
        return None
    where = shlex.quote(path) if Path(path).is_file() else "FILE"
    name = f"{Path(path).stem if Path(path).is_file() else 'FILE'}.jsonl"
    what = (
        f"{record.source}: its fields are lists of {_length(record):,} values each, so it is a table by columns. "
        f"Write it by rows:\n  python -c {shlex.quote(PROGRAM)} {where} > {shlex.quote(name)}\n"
    )
    if read := _is_read(rows, formats):
        return f"{what}Those are read as {read}."
    way = way_to_read(rows, formats.installed) if formats.chosen is None else None
    return None if way is None else f"{what}Of those, {way.describe()}."


def rows_of(record: Record) -> list[Record]:
    """The first rows of a table by columns; none for any other record."""
    columns = list(record.fields.values())
    if not columns or not all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns):
        return []
    rows = [dict(zip(record.fields, row, strict=True)) for row in zip(*(each[:TRIED] for each in columns), strict=True)]
    return [Record(row, f"{record.source}, row {number}") for number, row in enumerate(rows, 1)]


def _length(record: Record) -> int:
    return len(next(iter(record.fields.values())))


def _is_read(records: list[Record], formats: Formats) -> str:
    """The format that reads all the records; "" where none does."""
    kinds: list[type[DataFormat]] = recognised_by(formats.installed, records) if formats.chosen is None else []
    kind = formats.chosen or (kinds[0]() if len(kinds) == 1 else None)
    if kind is None:
        return ""
    try:
        for record in records:
            read_record(kind, record)
    except DataError:
        return ""
    return kind.name
