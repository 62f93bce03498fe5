"""Reading files: what is accepted, and what every fault is told as."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmflow.data.containers import iterate_records, read_records
from lmflow.data.files import fingerprint
from lmflow.data.record import Record
from lmflow.errors import DataError

TWO = [{"text": "one"}, {"text": "zwei, 二"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TWO)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", LINES, ["a.jsonl:1", "a.jsonl:2"]),
        ("a.jsonl", "\n" + LINES.replace("\n", "\n\n"), ["a.jsonl:2", "a.jsonl:4"]),
        ("a.json", LINES, ["a.json:1", "a.json:2"]),
        ("a.json", json.dumps(TWO, indent=2, ensure_ascii=False), ["a.json: record 1", "a.json: record 2"]),
        ("a.jsonl", json.dumps(TWO), ["a.jsonl: record 1", "a.jsonl: record 2"]),
        ("a.json", "\ufeff" + json.dumps(TWO, ensure_ascii=False), ["a.json: record 1", "a.json: record 2"]),
        ("a.json", json.dumps({"type": "text_only", "instances": TWO}), ["a.json: instance 1", "a.json: instance 2"]),
        (
            "a.json",
            json.dumps({"type": "text_only", "instances": TWO}, indent=1),
            ["a.json: instance 1", "a.json: instance 2"],
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_accepted(name: str, text: str, places: list[str], zipped: bool, tmp_path: Path):
    raw = text.encode()
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    records = read_records(path)
    assert [dict(record.fields) for record in records] == TWO
    assert [record.source.replace(".gz", "") for record in records] == places
    declared = "text_only" if "instances" in text else None
    assert {record.declared for record in records} == {declared}


def test_one_object_over_many_lines(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one"}, indent=2))
    assert read_records(tmp_path / "a.json") == [Record({"text": "one"}, "a.json: record 1")]


def test_a_text_file_is_one_record(tmp_path: Path):
    (tmp_path / "book.txt").write_text("First.\n\nSecond.\n")
    assert read_records(tmp_path / "book.txt") == [Record({"text": "First.\n\nSecond.\n"}, "book.txt")]


def test_a_directory_is_all_its_files_by_name(tmp_path: Path):
    (tmp_path / "b.jsonl").write_text('{"text": "2"}\n')
    (tmp_path / "a.json").write_text('[{"text": "1"}]')
    (tmp_path / "readme.md").write_text("not data")
    assert [record.fields["text"] for record in read_records(tmp_path)] == ["1", "2"]


def test_multibyte_text_at_every_offset(tmp_path: Path):
    """LMFlow sought into the file by bytes and broke two of three Chinese files."""
    for padding in range(5):
        rows = [{"text": "x" * padding + "数据" * 80}] * 3
        (tmp_path / "a.json").write_text(json.dumps({"type": "text_only", "instances": rows}, ensure_ascii=False))
        assert len(read_records(tmp_path / "a.json")) == 3


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON at column"),
        ("a.jsonl", b'{"a": 1}\n[1, 2]\n', r"a\.jsonl:2: expected an object with named fields, found a list \[1, 2\]"),
        ("a.json", b'[{"a": 1}, "text"]', r'a\.json: record 2: expected an object .*found text "text"'),
        ("a.json", b'[{"a": 1},\n {"a": }]', r"a\.json:2: not JSON at column"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: not UTF-8 \(byte 0xff\)"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50, mtime=0)[:-20], "broken gzip file"),
        ("a.jsonl", b"", "holds no record"),
        ("a.jsonl", b" \n\n", "holds no record"),
        ("a.json", b"[]", "holds no record"),
        ("a.json", b'{"type": "text_only", "instances": []}', "holds no record"),
    ],
)
def test_faults(name: str, raw: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_records(tmp_path / name)


def test_missing_paths(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"promts\.jsonl does not exist\. Did you mean .*prompts\.jsonl"):
        read_records(tmp_path / "promts.jsonl")
    with pytest.raises(DataError, match="Nor does the directory"):
        read_records(tmp_path / "no" / "where.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data file"):
        read_records(tmp_path / "empty")


def test_fingerprint_follows_the_bytes(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(LINES)
    first = fingerprint(tmp_path / "a.jsonl")
    assert len(first) == 64
    (tmp_path / "a.jsonl").write_text(LINES + " ")
    assert fingerprint(tmp_path / "a.jsonl") != first


def test_where_one_file_ends_and_the_next_begins_is_part_of_a_fingerprint(tmp_path: Path):
    found = set()
    for first, second in (("ab", "c"), ("a", "bc")):
        (tmp_path / "1.txt").write_text(first)
        (tmp_path / "2.txt").write_text(second)
        found.add(fingerprint(tmp_path))
    (tmp_path / "2.txt").rename(tmp_path / "3.txt")
    assert len({*found, fingerprint(tmp_path)}) == 3


def test_a_data_set_on_the_hub_is_known_by_its_revision(monkeypatch: pytest.MonkeyPatch):
    def at(sha: str | None) -> str:
        def info(name: str) -> SimpleNamespace:
            if sha is None:
                raise OSError("no network")
            return SimpleNamespace(sha=sha)

        monkeypatch.setattr("huggingface_hub.dataset_info", info)
        return fingerprint("owner/set")

    assert at("1") == at("1") != at("2")
    assert at(None) != at(None)


def test_what_is_no_file_of_data_is_named(tmp_path: Path):
    """Left out without a word, it would be another training set."""
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl.bz2").write_bytes(b"BZh9")
    with pytest.raises(
        DataError, match=r"b\.jsonl\.bz2: \.bz2 is not read; unpack it, or compress it as \.gz or \.zst"
    ):
        read_records(tmp_path)
    with pytest.raises(DataError, match="/dev/null is neither a file nor a directory"):
        read_records("/dev/null")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match="its directories are not looked into"):
        read_records(tmp_path / "outer")
    for text in ("junk", "[]", "{}"):
        (tmp_path / "outer" / "dataset_dict.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset_dict\.json: does not name the parts"):
            read_records(tmp_path / "outer")


def test_a_description_beside_the_data_is_not_data(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "dataset_info.json").write_text('{"alpaca": {"file_name": "a.jsonl"}}')
    assert [dict(record.fields) for record in read_records(tmp_path)] == TWO


def test_an_array_in_one_line_is_read_piece_by_piece(tmp_path: Path):
    """As json.dump writes it: memory holds a few blocks of it, not the file."""
    import tracemalloc

    with (tmp_path / "a.json").open("w") as file:
        file.write("[")
        file.writelines(f'{{"text": "{"x" * 1000}"}},' for _ in range(30_000))
        file.write('{"text": "last"}]')
    tracemalloc.start()
    count = sum(1 for _ in iterate_records(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_001
    assert peak < 10 << 20 < (tmp_path / "a.json").stat().st_size
