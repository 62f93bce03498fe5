"""Files of CSV and TSV: rows of cells under the names of the first line."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lmflow.data.endings import ending
from lmflow.data.record import Found, Record
from lmflow.errors import DataError

TAB = "\t"
LONGEST_CELL = 1 << 30
LONGEST_HEAD = 1 << 16
"""Bytes of a table's first line that are looked at to find what separates its cells."""
QUOTED = re.compile(r'"((?:[^"]|"")*)"(?=\t|\Z)')
"""A cell of TSV in quotes, each quote in it doubled."""
OPEN = re.compile(r'"(?:[^"]|"")*\Z')
"""A cell in quotes that does not end within the text."""
MOST_LINES = 1000
"""Lines that a row of TSV may have."""
NEWLINES = "\r\n"
Lines = deque[tuple[int, str]]
"""Lines of a file and their numbers."""
Row = tuple[int, list[str]]
"""The number of a row's first line, and its cells."""


def from_delimited(stream: IO[bytes], file: Path) -> Found:
    """Rows under the names of the first; a cell is text, or nothing where it is empty."""
    delimiter = _delimiter(stream, TAB if ending(file) == ".tsv" else ",")
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = _tsv_rows(text) if delimiter == TAB else _csv_rows(text, delimiter, file)
    names: list[str] | None = None
    for line, cells in rows:
        if names is None:
            names = cells
            _check_names(names, file)
        elif len(cells) != len(names):
            yield DataError(
                f"{file.name}:{line}: expected {len(names)} cells, as the first line names, found {len(cells)}"
            )
        else:
            yield Record({name: cell or None for name, cell in zip(names, cells, strict=True)}, f"{file.name}:{line}")


def _check_names(names: Sequence[str], file: Path) -> None:
    """Raise DataError where two columns have one name, as the second would hide the first."""
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise DataError(f"{file.name}:1: more than one column is called {twice[0]!r}")


# CSV


def _csv_rows(text: Iterable[str], delimiter: str, file: Path) -> Iterator[Row]:
    """The rows of a file whose cells may be in quotes, and must be where they hold what separates cells."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file.name}:{line}: not CSV: {error}") from None
        if cells is None:
            return
        if cells:
            yield line, cells


def _delimiter(stream: Any, usual: str) -> str:
    """What separates cells: a semicolon where the first line has some and not one of what the file's name says."""
    first = stream.peek(LONGEST_HEAD)[:LONGEST_HEAD].partition(b"\n")[0]
    if b";" not in first or usual.encode() in first:
        return usual
    names = next(csv.reader([first.decode("utf-8-sig", "replace")], delimiter=";"), [])
    return ";" if len(names) > 1 else usual  # one name in quotes may hold a semicolon


# TSV


def _tsv_rows(text: Iterable[str]) -> Iterator[Row]:
    """The rows of a file of tabs, in which a quote is one like any other character.

    But where a cell begins with a quote and ends with one, those in it doubled, it is what is between them: so
    spreadsheets write cells with quotes, tabs and line breaks.
    """
    source = enumerate(text, 1)
    lines = deque(islice(source, 1))
    width: int | None = None
    while lines:
        number, line = lines.popleft()
        if said := line.rstrip(NEWLINES):
            cells = _over_lines(line, lines, source, width) if is_open(said) else None
            cells = tsv_cells(said) if cells is None else cells
            width = len(cells) if width is None else width
            yield number, cells
        lines.extend([] if lines else islice(source, 1))


def _over_lines(line: str, lines: Lines, source: Iterator[tuple[int, str]], width: int | None) -> list[str] | None:
    """The cells of a row that begins with `line` and goes on in `lines`, which grow from `source` and lose what it has.

    None, and nothing lost, where the quote that is open is one like others: it is not closed as a cell's is, or the
    row would not have `width` cells.
    """
    parts = [line]
    for count in range(1, MOST_LINES):
        lines.extend(islice(source, max(0, count - len(lines))))
        if len(lines) < count:
            return None
        parts.append(lines[count - 1][1])
        text = "".join(parts).rstrip(NEWLINES) if '"' in parts[-1] else ""
        if text and not is_open(text):
            break
    else:
        return None
    cells = list(_cells(text))
    is_row = len(cells) == (width or len(cells)) and all(quoted or "\n" not in cell for cell, quoted in cells)
    if not is_row:
        return None
    for _ in parts[1:]:
        lines.popleft()
    return [cell for cell, _ in cells]


def is_open(text: str) -> bool:
    """Whether the last cell of a text is in quotes that do not end in it."""
    at = 0
    for cell, quoted in _cells(text):
        if not quoted and cell.startswith('"') and OPEN.match(text, at):
            return True
        at += len(cell) + 1 + (cell.count('"') + 2 if quoted else 0)
    return False


def tsv_cells(text: str) -> list[str]:
    """The cells of a row, those that are well formed in quotes without them."""
    return [cell for cell, _ in _cells(text)]


def _cells(text: str) -> Iterator[tuple[str, bool]]:
    """The cells of a row, and whether they were in quotes."""
    at = 0
    while at <= len(text):
        quoted = QUOTED.match(text, at)
        end = quoted.end() if quoted else text.find(TAB, at)
        end = len(text) if end < 0 else end
        yield (quoted[1].replace('""', '"'), True) if quoted else (text[at:end], False)
        at = end + 1
