"""Which form a file of JSON has is found by how it begins, and no form takes memory for the whole of it."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lmflow.data import json_array, json_files
from lmflow.data.compression import open_decompressed
from lmflow.data.containers import iterate_records, read_records
from lmflow.data.json_files import LOOKED_AT, from_json
from lmflow.data.record import Record
from lmflow.errors import DataError

INSTANCE = {"text": "x" * 1000}


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Within the context no more bytes than that are in use at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("separator", [",", ",\n"])
def test_a_container_of_any_size_takes_the_memory_of_a_few_instances(is_last: bool, separator: str, tmp_path: Path):
    path, count = tmp_path / "a.json", 20_000
    instances = f'"instances": [{separator.join([json.dumps(INSTANCE)] * count)}]'
    path.write_text("{" + ", ".join(sorted(['"type": "text_only"', instances], reverse=not is_last)) + "}\n")
    assert path.stat().st_size > 20_000_000
    with at_most(10 << 20):
        found = ((record.declared, record.source) for record in iterate_records(path) if isinstance(record, Record))
        *_, last = found
    assert last == ("text_only", f"a.json: instance {count}")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_long_first_line_may_still_be_a_record(zipped: bool, tmp_path: Path):
    rows = [{"text": "x" * 2 * LOOKED_AT}, {"text": "y"}]
    text = "\n" + "".join(f"{json.dumps(row)}\n" for row in rows)
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_records(path) == [Record(row, f"a.jsonl:{number}") for number, row in enumerate(rows, 2)]


def test_an_instance_that_is_no_record_has_its_number(tmp_path: Path):
    (tmp_path / "a.json").write_text('\n\n{"instances": [{"text": "a"}, 3, {"text": "b"}]}')
    first, second, third = iterate_records(tmp_path / "a.json")
    assert str(second) == "a.json: instance 2: expected an object with named fields, found a number 3"
    assert (first, third) == tuple(Record({"text": t}, f"a.json: instance {n}") for t, n in (("a", 1), ("b", 3)))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'\n{"type": "x", "instances": [{"a": 1},\n{"a": }]}', r"a\.json:3: not JSON at column 7: Expecting value"),
        (b'\n{"instances": [{"a": 1},\n{"a": }], "type": "x"}', r"a\.json:3: not JSON at column 7: Expecting value"),
        (
            b'{\n"type": "x", "instances": [{"a": "\xff"}]}',
            r"a\.json:2: not UTF-8 \(byte 0xff\)",
        ),
        (b'{"type": "x", "instances": [{"a": 1}]} {}', r"a\.json:1: not JSON at column 40: Extra data"),
        (
            b'{"text": "' + b"x" * 2 * LOOKED_AT,
            r"a\.json:1: not JSON at column 10: Unterminated string.*each line must",
        ),
    ],
)
def test_what_is_broken_has_its_place(raw: bytes, message: str, tmp_path: Path):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "' + b"b" * 200 + b'"}\n', r"f\.jsonl:2: a line of more than"),
        (
            b'[{"text": "a"}, {"text": "' + b"b" * (3 << 20) + b'"}]',
            "f.jsonl:1: not JSON at column 17: a value of more than",
        ),
        (b'{\n"text": "' + b"b" * 200 + b'"}\n', r"f\.jsonl: more than .* over several lines"),
    ],
)
def test_a_record_has_a_bound(content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A compressed file of a few kilobytes unfolds to gigabytes."""
    monkeypatch.setattr(json_files, "LONGEST", 100)
    monkeypatch.setattr(json_array, "LONGEST", 100)
    file = tmp_path / "f.jsonl"
    file.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message), open_decompressed(file) as stream:
        list(from_json(stream, file))
