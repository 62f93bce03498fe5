"""Files of JSON: a record a line, an array of them, LMFlow's container, or records over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from lmflow.data.compression import open_decompressed
from lmflow.data.json_array import iterate_array
from lmflow.data.json_container import INSTANCES, NoContainer, declared_type, iterate_instances
from lmflow.data.json_values import JsonValues
from lmflow.data.record import UTF16, Found, Record, not_utf8, record_of, unreadable_number
from lmflow.errors import DataError

BOM = b"\xef\xbb\xbf"
JSON_SPACE = re.compile(r"[ \t\r\n]*")
LONGEST = 1 << 28
"""Bytes of a record; a longer one is none, and might be all that a small compressed file unfolds to."""
LOOKED_AT = 1 << 20
"""Bytes of the first line that are looked at whole; what is longer may be a file that does not fit into memory."""


def from_json(stream: IO[bytes], file: Path) -> Found:
    """The records of a file of JSON, whose form is found by how it begins."""
    line, head = _skip_space(stream)
    if head.startswith(UTF16):
        raise DataError(f"{file.name}: UTF-16; convert the file to UTF-8")
    if head.startswith(b"["):  # which may all stand in one line
        yield from _from_array(stream, file, line)
        return
    first = stream.readline(LOOKED_AT)
    is_cut = len(first) == LOOKED_AT and not first.endswith(b"\n")
    if is_cut or not _is_a_record(first):
        try:
            declared = _declared_type(file)
        except NoContainer:
            first += stream.readline(LONGEST) if is_cut else b""
        else:
            yield from _from_container(file, declared)
            return
    yield from (_from_lines if _is_a_record(first) else _from_object)(first, stream, file, line)


def _is_a_record(line: bytes) -> bool:
    """Whether the first line is a JSON value of its own, so that each line is a record."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        # An object over many lines begins with a lone brace; anything else is a broken first line.
        text = line.strip()
        return text != b"{" and not text.endswith((b"{", b"[", b","))
    except (ValueError, RecursionError):
        return True
    return not (isinstance(value, Mapping) and isinstance(value.get(INSTANCES), list))


def _skip_space(stream: Any) -> tuple[int, bytes]:
    """Read over a byte-order mark and empty space; the number of the line that begins then, and its first bytes."""
    line = 1
    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    while (head := stream.peek(len(UTF16[0])))[:1].isspace():
        line += stream.read(1) == b"\n"
    return line, head


@contextmanager
def _located(file: Path, line: int) -> Iterator[None]:
    """Within the context JSON is read that begins at a line of the file; what is wrong with it becomes a DataError."""
    try:
        yield
    except json.JSONDecodeError as error:
        place = f"{file.name}:{error.lineno + line - 1}"
        raise DataError(f"{place}: not JSON at column {error.colno}: {error.msg}") from None


def _from_lines(first: bytes, rest: IO[bytes], file: Path, number: int) -> Found:
    values = JsonValues()
    for count, line in enumerate(chain([first], iter(lambda: rest.readline(LONGEST + 1), b"")), number):
        if len(line) > LONGEST:
            raise DataError(f"{file.name}:{count}: a line of more than {LONGEST >> 20} MB, which no record has")
        if line.strip():
            yield record_of_line(line, f"{file.name}:{count}", values)


def record_of_line(line: bytes, place: str, values: JsonValues) -> Record | DataError:
    """The record of a line, or why it is none."""
    try:
        return record_of(values.decode(line.decode("utf-8")), place, repeated=values.repeated)
    except json.JSONDecodeError as error:
        return DataError(f"{place}: not JSON at column {error.colno}: {error.msg}; each line must be one object")
    except UnicodeDecodeError as error:
        return DataError(not_utf8(place, error))
    except ValueError as error:
        return DataError(f"{place}: {unreadable_number(error)}")
    except RecursionError:
        return DataError(f"{place}: nested too deeply to be a record")


def _from_array(stream: IO[bytes], file: Path, line: int) -> Found:
    with _located(file, line):
        for number, (value, repeated) in enumerate(iterate_array(stream), 1):
            yield record_of(value, f"{file.name}: record {number}", repeated=repeated)


def _from_object(first: bytes, rest: IO[bytes], file: Path, line: int) -> Found:
    """One object after the other, each over as many lines as it takes."""
    with _located(file, line):
        content = first + rest.read(LONGEST)
        if len(content) > LONGEST:
            raise DataError(
                f"{file.name}: more than {LONGEST >> 20} MB of JSON over several lines; write a record a line"
            )
        values = list(_values(decoded(content, file)))
    for number, (value, repeated) in enumerate(values, 1):
        yield record_of(value, f"{file.name}: record {number}", repeated=repeated)


def _values(text: str) -> Iterator[tuple[Any, str | None]]:
    """The JSON values that stand in a text one after the other, each with a key that stands twice in it."""
    decoder, at = JsonValues(), 0
    while at < len(text):
        value, end = decoder.raw_decode(text, at)
        yield value, decoder.repeated
        at = JSON_SPACE.match(text, end).end()  # type: ignore[union-attr]  # it matches nothing too


def _declared_type(file: Path) -> Any:
    """What the container says its instances are. Raises NoContainer where the file is none."""
    with open_decompressed(file) as stream, _located(file, _skip_space(stream)[0]):
        return declared_type(stream)


def _from_container(file: Path, declared: Any) -> Found:
    with open_decompressed(file) as stream, _located(file, _skip_space(stream)[0]):
        for number, (instance, repeated) in enumerate(iterate_instances(stream), 1):
            yield record_of(instance, f"{file.name}: instance {number}", declared, repeated)


def decoded(content: bytes, file: Path) -> str:
    """The bytes of a file as text. Raises DataError with the line where they are none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(not_utf8(f"{file.name}:{line}", error)) from None
