"""CSV and TSV: what a quote means, and rows that have not as many cells as there are names."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmflow.data.containers import iterate_records
from lmflow.data.delimited import tsv_cells
from lmflow.errors import DataError


def rows_of(folder: Path, text: str, name: str = "a.tsv") -> list[tuple[str, Any]]:
    (folder / name).write_bytes(text.encode())
    return [
        (str(each), None) if isinstance(each, DataError) else (each.source, tuple(each.fields.values()))
        for each in iterate_records(folder / name)
    ]


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("a\tb", ["a", "b"]),
        ("", [""]),
        ("a\t", ["a", ""]),
        ('say "hi"\tb', ['say "hi"', "b"]),
        ('"a ""b"" c"\t"x\ty"', ['a "b" c', "x\ty"]),
        ('"a" b\t5" disk', ['"a" b', '5" disk']),
        ('"open\tb', ['"open', "b"]),
        ('""\t"', ["", '"']),
    ],
)
def test_a_quote_is_like_any_other_unless_a_cell_is_in_quotes(text: str, cells: list[str]):
    assert tsv_cells(text) == cells


def test_cells_over_several_lines(tmp_path: Path):
    text = 'q\ta\n1\t"one\r\ntwo"\n"x\ny"\t"\n\tz"\n2\tb\n'
    assert rows_of(tmp_path, text) == [
        ("a.tsv:2", ("1", "one\r\ntwo")),
        ("a.tsv:4", ("x\ny", "\n\tz")),
        ("a.tsv:7", ("2", "b")),
    ]


def test_quotes_that_none_closes_are_text(tmp_path: Path):
    text = 'q\ta\n"open\tb\nc\td"\n"e\tf\n\n"g" h\ti\nj\t"k'
    assert rows_of(tmp_path, text) == [
        ("a.tsv:2", ('"open', "b")),
        ("a.tsv:3", ("c", 'd"')),
        ("a.tsv:4", ('"e', "f")),
        ("a.tsv:6", ('"g" h', "i")),
        ("a.tsv:7", ("j", '"k')),
    ]


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", ";")])
def test_other_numbers_of_cells_are_told_with_line_and_count(name: str, between: str, tmp_path: Path):
    text = "q,a\n1,2\n\n3,4,5\n6\n7,8\n".replace(",", between)
    assert rows_of(tmp_path, text, name) == [
        ("a.csv:2".replace("a.csv", name), ("1", "2")),
        (f"{name}:4: expected 2 cells, as the first line names, found 3", None),
        (f"{name}:5: expected 2 cells, as the first line names, found 1", None),
        (f"{name}:6", ("7", "8")),
    ]


CELL = st.text(st.sampled_from('ab"\t\n '), max_size=6)


@given(rows=st.lists(st.tuples(CELL, CELL, CELL), max_size=5))
def test_what_spreadsheets_write_is_read(rows: list[tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.getbasetemp() / "written.tsv"
    with file.open("w", newline="") as stream:
        csv.writer(stream, "excel-tab", lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("x", "y", "z"), *rows])
    found = [each.fields for each in iterate_records(file) if not isinstance(each, DataError)]
    assert [tuple(cell or "" for cell in fields.values()) for fields in found] == rows
