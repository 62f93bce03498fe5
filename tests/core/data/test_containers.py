"""Every container gives the same records, one at a time; what is broken says where, and never trains in silence."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmflow.components import DataFormat
from lmflow.data.containers import iterate_records, read_records
from lmflow.data.dataset import load_dataset, read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.json_array import iterate_array
from lmflow.data.record import Record
from lmflow.data.tools.check import check_data
from lmflow.data.tools.convert import convert
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

ROWS = [{"instruction": f"Say {i}, 数据", "input": None, "output": f'"{i}"\nyes\u2028no'} for i in range(7)]
BY_NAME: dict[str, type[DataFormat]] = {each.name: each for each in FORMATS}


def as_lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def write_csv(path: Path, delimiter: str = ",") -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=3)


def write_zst(path: Path) -> None:
    import pyarrow

    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(as_lines(ROWS))


def write_saved(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


def write_saved_parts(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(path))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(as_lines(ROWS)),
    "crlf.jsonl": lambda path: path.write_bytes(as_lines(ROWS, "\r\n")),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + as_lines(ROWS)),
    "no-end.jsonl": lambda path: path.write_bytes(as_lines(ROWS).rstrip()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_lines(ROWS))),
    "gzipped-whatever-it-is-called.jsonl": lambda path: path.write_bytes(gzip.compress(as_lines(ROWS))),
    "a.jsonl.zst": write_zst,
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "indented.json": lambda path: path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False)),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
    "saved": write_saved,
    "saved-parts": write_saved_parts,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_container_gives_the_same_samples(name: str, tmp_path: Path):
    WRITERS[name](tmp_path / name)
    assert [dict(record.fields) for record in read_records(tmp_path / name)] == ROWS
    for streaming in (False, True):
        found = read_samples(DataOptions(path=str(tmp_path / name), streaming=streaming), Formats(FORMATS))
        assert [sample.messages[-1].content for sample in found] == [row["output"] for row in ROWS]
        assert found[-1] == list(found)[-1]
        assert len({sample.source for sample in found}) == len(ROWS)


# Options


# Faults


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: expected 2 cells"),
        ("a.csv", b'a,b\n"1,2\n', r"a\.csv:2: not CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "not UTF-8"),
        ("a.csv", b'a,"b\n', r"a\.csv:1: not CSV"),
        ("a.csv", b"text,id,text\none,1,two\n", r"a\.csv:1: more than one column is called 'text'"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}\n", r"a\.jsonl:1: holds a number that cannot be read: Exceeds"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "holds a number that cannot be read: Exceeds"),
        ("a.json", b'{"type": "x", "instances": [\n' + b"1" * 5000 + b"]}", "holds a number that cannot be read"),
        ("a.parquet", b"PAR1 and no more", "broken parquet file"),
        ("a.parquet", b"", "broken parquet file"),
        ("a.arrow", b"no arrow at all", "broken arrow file"),
        ("a.jsonl", '{"a": "é"}'.encode("utf-16"), "UTF-16; convert the file"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", r"a\.jsonl:1: nested too deeply"),
        ("a.json", b'[{"a": 1}] more', r"a\.json:1: not JSON at column 12: Extra data"),
        ("a.json", b'[{"a": 1},]', r"a\.json:1: not JSON at column"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', r"a\.json:2: not JSON at column 2: Expecting '\]' or ','"),
        ("a.json", b'[{"a": 1}, {"a": "\xff"}]', "not UTF-8"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd nothing", "cannot be read"),
    ],
)
def test_what_is_broken_is_named(name: str, raw: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / name)


def test_a_line_of_a_hundred_megabytes(tmp_path: Path):
    text = "x" * 100_000_000
    (tmp_path / "a.jsonl").write_bytes(as_lines([{"text": "a"}, {"text": text}]))
    assert [len(record.fields["text"]) for record in iterate_records(tmp_path / "a.jsonl")] == [1, len(text)]


ONCE, SAME = '{"prompt": "a"}', '{"prompt": "a", "prompt": "a"}'
TWICE, INSIDE = '{"prompt": "a", "prompt": "b"}', '{"a": [{"b": {"c": 1, "c": 2}}], "prompt": "x"}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join([ONCE, TWICE, SAME, INSIDE])),
        ("a.json", f"[{ONCE},\n{TWICE}, {SAME}, {INSIDE}]"),
        ("a.json", "\n".join(each.replace("{", "{\n") for each in [ONCE, TWICE, SAME, INSIDE])),
        ("a.json", f'{{"type": "x", "instances": [{ONCE}, {TWICE}, {SAME}, {INSIDE}]}}'),
    ],
)
def test_a_key_that_says_two_things_spoils_its_record_alone(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    found = list(iterate_records(tmp_path / name))
    assert [each.fields if isinstance(each, Record) else None for each in found] == [
        {"prompt": "a"},
        None,
        {"prompt": "a"},
        None,
    ]
    assert str(found[1]).endswith("2: prompt: stands twice in one object, with different values; keep one of them")
    assert "4: c: stands twice" in str(found[3])


def test_an_array_is_read_piece_by_piece():
    """Whatever lies across the border of two blocks."""
    draw = random.Random(0)
    values = [
        draw.choice([{"a": "é" * draw.randint(0, 9)}, 12345, -1.5e10, "x\n", None, [True, {}]]) for _ in range(200)
    ]
    text = json.dumps(values, ensure_ascii=False, indent=1).encode()

    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(draw.randint(1, 5))

    assert list(iterate_array(Trickle(text))) == [(value, None) for value in values]


def test_the_line_of_a_fault_is_counted_across_blocks():
    text = b"[\n" + b'{"a": 1},\n' * 500_000 + b'{"a": oops},\n' + b'{"a": 1}\n' * 500_000 + b"]"
    stream = io.BytesIO(text)
    with pytest.raises(json.JSONDecodeError) as caught:
        for _ in iterate_array(stream):
            pass
    assert (caught.value.lineno, caught.value.colno) == (500_002, 7)
    assert stream.tell() < len(text)  # it is not looked for an end that would mend it


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "text messages conversations prompt completion label chosen rejected system instruction output input history tools "
    "value id"
)
FIELDS = st.sampled_from(NAMES.split())
TURN_KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "function_call", "name", "weight"])
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "function", "human", "gpt"])
TURNS = st.lists(st.dictionaries(TURN_KEYS, ROLES | JSON, max_size=4), max_size=3)
ROW = st.dictionaries(FIELDS, JSON | TURNS | st.text(max_size=5), max_size=5)
CONTAINER = st.builds(lambda kind, rows: {"type": kind, "instances": rows}, JSON | st.sampled_from([*BY_NAME]), JSON)
GARBAGE = (
    st.binary(max_size=200)
    | (ROW | CONTAINER | st.lists(ROW)).map(lambda value: json.dumps(value).encode())
    | st.lists(ROW).map(lambda rows: b"\r\n".join(json.dumps(row).encode() for row in rows))
    | st.binary(max_size=9).flatmap(lambda junk: ROW.map(lambda row: junk + b"\n" + json.dumps(row).encode()))
)
SUFFIXES = st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl.gz", ".json.zst"])


def outcome_of(read: Callable[[], Any]) -> Any:
    """What reading gives, or the DataError it ends with; any other exception is a failure."""
    try:
        return read()
    except DataError as error:
        return error


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=GARBAGE, suffix=SUFFIXES, zipped=st.booleans(), cut=st.integers(0, 20), skip=st.booleans(), disk=st.booleans()
)
def test_whatever_a_file_holds_is_samples_or_an_error(
    raw: bytes, suffix: str, zipped: bool, cut: int, skip: bool, disk: bool, tmp_path: Path
):
    content = gzip.compress(raw) if zipped else raw
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(content[: len(content) - cut])
    data = DataOptions(path=str(path), validation=0, on_bad_record="skip" if skip else "error", streaming=disk)
    outcome_of(lambda: json.dumps(check_data(data, Formats(FORMATS), None).as_dict()))
    outcome = outcome_of(lambda: load_dataset(data, Formats(FORMATS), 0))
    if isinstance(outcome, DataError):
        assert "fuzz" in str(outcome)
        return
    found, summary = outcome
    assert len(found.train) + summary.skipped == summary.records
    assert not summary.skipped or skip
    for sample in found.train:
        assert sample.messages
        for turn in (*sample.messages, *sample.rejected):
            turn.content.encode()


@settings(max_examples=300, deadline=None)
@given(record=ROW, name=st.sampled_from([each.name for each in FORMATS]))
def test_whatever_a_record_holds_is_a_sample_or_an_error(record: dict[str, Any], name: str):
    outcome = outcome_of(lambda: BY_NAME[name]().sample(record, "f:1"))
    if isinstance(outcome, DataError):
        assert str(outcome).startswith("f:1: ")
    else:
        assert all(isinstance(turn.content, str) for turn in outcome.messages)
        for kind in FORMATS:
            converted = outcome_of(lambda kind=kind: list(convert([outcome], kind(), BY_NAME[name]())))
            if not isinstance(converted, DataError):
                json.dumps(converted[0].record, ensure_ascii=False).encode()


# Files as other programs write them


@pytest.mark.parametrize("head", ["question;answer", '"question";"answer"'])
def test_cells_between_semicolons(tmp_path: Path, head: str):
    (tmp_path / "a.csv").write_text(f'\ufeff{head}\none, two\nq;a, "b"\n"q;";\n', encoding="utf-8")
    broken, *found = iterate_records(tmp_path / "a.csv")
    assert str(broken).startswith("a.csv:2: expected 2 cells"), "the comma of a cell separates none"
    rows = [{"question": "q", "answer": 'a, "b"'}, {"question": "q;", "answer": None}]
    assert [dict(each.fields) for each in found if isinstance(each, Record)] == rows


@pytest.mark.parametrize("head", ["a;b,c", '"a;b"', "a"])
def test_a_semicolon_in_a_name_separates_nothing(tmp_path: Path, head: str):
    (tmp_path / "a.csv").write_text(f"{head}\n1{',2' * head.count(',')}\n")
    [found] = iterate_records(tmp_path / "a.csv")
    assert isinstance(found, Record)
    assert "".join(found.fields) == head.replace(",", "").replace('"', "")


@pytest.mark.parametrize("between", ["\n", "", "\r\n\n "])
def test_objects_over_several_lines_one_after_the_other(tmp_path: Path, between: str):
    rows = [{"a": 1, "b": [2]}, {"a": [{"b": "}"}]}, {"a": None}]
    (tmp_path / "a.jsonl").write_text(between.join(json.dumps(row, indent=2) for row in rows) + "\n")
    found = [each for each in iterate_records(tmp_path / "a.jsonl") if isinstance(each, Record)]
    assert [dict(each.fields) for each in found] == rows
    assert [each.source for each in found] == [f"a.jsonl: record {i}" for i in (1, 2, 3)]


def test_a_broken_object_among_several_is_placed(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{\n "a": 1\n}\n{\n "a": 1,,\n}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:5: not JSON at column 9"):
        list(iterate_records(tmp_path / "a.jsonl"))
