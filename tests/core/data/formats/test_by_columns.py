"""Tables by columns in JSON: what is advised writes records that are read."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.by_columns import rows_of
from lmflow.data.record import Record
from lmflow.errors import DataError
from lmflow.recipe.sections.data import Reading


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"instruction": ["a", "é"], "output": ["c", "d"]}, "Those are read as alpaca."),
        ({"question": ["a", "b"], "reply": ["c", "d"]}, "--data.columns prompt=question,completion=reply reads them"),
        ({"text": ["a", "b"]}, "Those are read as text_only."),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_the_command_writes_what_is_read(table: dict[str, Any], told: str, indent: int | None, tmp_path: Path):
    file = tmp_path / "a table.json"
    file.write_text(json.dumps(table, indent=indent))
    with pytest.raises(DataError, match="lists of 2 values each, so it is a table by columns") as caught:
        read_samples(Reading(path=str(file)), Formats(FORMATS))
    _, command, last = str(caught.value).split("\n")
    assert told in last
    words = shlex.split(command)
    assert (words[0], words[-2]) == ("python", ">")
    written = subprocess.run([sys.executable, *words[1:-2]], capture_output=True, text=True, check=True).stdout
    (tmp_path / words[-1]).write_text(written)
    options = dict(each.split("=") for each in last.split()[3].split(",")) if "--data.columns" in last else {}
    assert len(read_samples(Reading(path=str(tmp_path / words[-1]), columns=options), Formats(FORMATS))) == 2


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_records_of_lists_are_records(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"chosen": TURNS, "rejected": TURNS[:1] + TURNS[1:]}))
    assert len(read_samples(Reading(path=str(file)), Formats(FORMATS))) == 1
    file.write_text(json.dumps({"a": [1, 2], "b": [3, 4]}))
    with pytest.raises(DataError, match="are none of the installed formats"):
        read_samples(Reading(path=str(file)), Formats(FORMATS))


def test_what_is_no_table():
    for fields in ({}, {"a": []}, {"a": [1], "b": [1, 2]}, {"a": [1], "b": "x"}):
        assert rows_of(Record(fields, "f: record 1")) == []
