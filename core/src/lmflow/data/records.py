"""Reading files of records: JSON, JSON lines and text, each also gzipped, found by looking at the content."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow.errors import DataError

ENDINGS = (".json", ".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True, slots=True)
class Record:
    """One record, where it stands ("prompts.jsonl:12", "alpaca.json: record 3"), and the type its file declares."""

    fields: Mapping[str, Any]
    source: str
    declared: str | None = None


def read_records(path: Path) -> list[Record]:
    """All records of a file, or of the files directly in a directory, sorted by name.

    Raises DataError naming file and line for anything that is not records of UTF-8 JSON or text.
    """
    records = [record for file in data_files(path) for record in _read_file(file)]
    if not records:
        raise DataError(f"{path} holds no record.")
    return records


def data_files(path: Path) -> list[Path]:
    """The files that `path` stands for."""
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist.{_nearest(path)}")
    files = sorted(file for file in path.iterdir() if file.is_file() and _ending(file) in ENDINGS)
    if not files:
        raise DataError(f"{path} holds no data file ({', '.join(ENDINGS)}, each also .gz).")
    return files


def fingerprint(path: Path) -> str:
    """SHA-256 of the bytes of all files at `path`, in hexadecimal."""
    digest = hashlib.sha256()
    for file in data_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read_file(file: Path) -> list[Record]:
    text = _read_text(file)
    if not text.strip():
        return []
    if _ending(file) == ".txt":
        return [Record({"text": text}, file.name)]
    if text.lstrip().startswith("["):
        return _from_array(_parse(text, file), file)
    lines = text.splitlines()
    if _looks_like_lines(lines):
        return [_from_line(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    return _from_object(_parse(text, file), file)


def _looks_like_lines(lines: list[str]) -> bool:
    """Whether the first line is a whole JSON value, so that each line is a record of its own."""
    first = next(line for line in lines if line.strip())
    try:
        value = json.loads(first)
    except json.JSONDecodeError:
        # An object over many lines begins with a lone brace; anything else is a broken first line.
        return first.strip() not in ("{",) and not first.strip().endswith(("{", "[", ",")) and len(lines) > 1
    return not (isinstance(value, dict) and _is_container(value))


def _is_container(value: Mapping[str, Any]) -> bool:
    """LMFlow's file: {"type": T, "instances": [...]}."""
    return isinstance(value.get("instances"), list)


def _from_line(line: str, file: Path, number: int) -> Record:
    place = f"{file.name}:{number}"
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: not JSON at column {error.colno}: {error.msg}; each line must be one object"
        ) from None
    return _record(value, place, None)


def _from_array(values: Any, file: Path) -> list[Record]:
    return [_record(value, f"{file.name}: record {number}", None) for number, value in enumerate(values, 1)]


def _from_object(value: Any, file: Path) -> list[Record]:
    if isinstance(value, dict) and _is_container(value):
        declared = value.get("type")
        return [_record(v, f"{file.name}: instance {n}", declared) for n, v in enumerate(value["instances"], 1)]
    return [_record(value, f"{file.name}: record 1", None)]


def _record(value: Any, place: str, declared: str | None) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object with named fields, found {describe(value)}")
    return Record(value, place, declared)


def _parse(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file.name}:{error.lineno}: not JSON at column {error.colno}: {error.msg}") from None


def _read_text(file: Path) -> str:
    try:
        raw = file.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: broken gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file.name}:{line}: not UTF-8 (byte {content[error.start]:#04x}); convert the file") from None


def _ending(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _nearest(path: Path) -> str:
    """A suggestion for a mistyped path, empty if nothing is near."""
    if not path.parent.is_dir():
        return f" Nor does the directory {path.parent}."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def describe(value: Any) -> str:
    """A value's kind and a short look at it, for messages."""
    kinds = {str: "text", list: "a list", dict: "an object", bool: "a truth value", type(None): "nothing"}
    kind = kinds.get(type(value), "a number")
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return kind if value is None else f"{kind} {shown if len(shown) <= 60 else shown[:57] + '...'}"
