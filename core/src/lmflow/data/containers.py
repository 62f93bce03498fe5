"""The containers records come in: JSON lines, JSON, LMFlow's object, text, CSV, Parquet, Arrow, and the hub."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from lmflow.data.files import data_files, ending, on_hub
from lmflow.data.hub import hub_is_out_of_reach
from lmflow.data.json_array import iterate_array
from lmflow.data.record import Record, describe
from lmflow.data.tables import rows_of
from lmflow.errors import DataError

GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
BOM = b"\xef\xbb\xbf"
LONGEST_CELL = 1 << 30
Found = Iterator[Record | DataError]
T = TypeVar("T")


def iterate_file(file: Path) -> Found:
    """The records of one file; see `lmflow.data.files.iterate_records`."""
    kind = ending(file)
    with explained(file):
        if kind in (".parquet", ".arrow") or _begins_with(file, PARQUET):
            yield from _from_table(file, kind)
            return
        with open_decompressed(file) as stream:
            if kind == ".txt":
                yield from _from_text(stream, file)
            elif kind in (".csv", ".tsv"):
                yield from _from_csv(stream, file, "\t" if kind == ".tsv" else ",")
            else:
                yield from _from_json(stream, file)


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Within the context what can go wrong with a file as a whole is a DataError that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: broken gzip file: {error}") from None
    except RecursionError:
        raise DataError(f"{file}: its values are nested too deeply to be records") from None
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(file.name, error)) from None
    except ValueError as error:
        raise DataError(f"{file}: {_unreadable_number(error)}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def open_decompressed(file: Path) -> IO[bytes]:
    """The bytes of a file, of a compressed one those inside, whatever its name says."""
    if _begins_with(file, GZIP):
        return cast(IO[bytes], gzip.open(file))
    if _begins_with(file, ZSTD):
        return _open_zstd(file)
    return file.open("rb")


def _begins_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _open_zstd(file: Path) -> IO[bytes]:
    pyarrow = _pyarrow(file)
    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), 1 << 20)


def _pyarrow(file: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{file}: reading it takes pyarrow: pip install 'lmflow-core[tables]'") from None
    return pyarrow


# Text


def _from_text(stream: IO[bytes], file: Path) -> Found:
    text = _decoded(stream.read(), file)
    if text.strip():
        yield Record({"text": text}, file.name)


def _from_csv(stream: IO[bytes], file: Path, delimiter: str) -> Found:
    """Rows under the names of the first; a cell is text, or nothing where it is empty."""
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    cells = _columns(_parsed(lambda: reader.fieldnames or (), f"{file.name}:1", delimiter), file)
    while True:
        place = f"{file.name}:{reader.line_num + 1}"
        row = _parsed(lambda: next(reader, None), place, delimiter)
        if row is None:
            return
        if None in row or None in row.values():
            yield DataError(f"{place}: expected {cells} cells, as the first line names; found another number")
        else:
            yield Record({name: cell or None for name, cell in row.items()}, place)


def _parsed(parse: Callable[[], T], place: str, delimiter: str) -> T:
    """What `parse` reads. Raises DataError naming the place where it is not what the file's name says."""
    try:
        return parse()
    except csv.Error as error:
        raise DataError(f"{place}: not {'TSV' if delimiter != ',' else 'CSV'}: {error}") from None


def _columns(names: Sequence[str], file: Path) -> int:
    """How many columns there are. Raises DataError where two have one name, as the second would hide the first."""
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise DataError(f"{file.name}:1: more than one column is called {twice[0]!r}")
    return len(names)


# JSON


def _from_json(stream: IO[bytes], file: Path) -> Found:
    """JSON lines, an array, an object, or LMFlow's container, by how the file begins."""
    number, head = _skip_space(stream)
    if head.startswith(UTF16):
        raise DataError(f"{file.name}: UTF-16; convert the file to UTF-8")
    if head.startswith(b"["):  # which may all stand in one line
        yield from _from_array(stream, file, number)
        return
    first = stream.readline()
    if not first:
        return
    if _is_a_record(first, file, number, more=stream):
        yield from _from_lines(first, stream, file, number)
    else:
        yield from _from_object(first + stream.read(), file, number)


def _is_a_record(line: bytes, file: Path, number: int, more: IO[bytes]) -> bool:
    """Whether the first line is a JSON value of its own, so that each line is a record."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        # An object over many lines begins with a lone brace; anything else is a broken first line.
        text = line.strip()
        return text != b"{" and not text.endswith((b"{", b"[", b","))
    except (ValueError, RecursionError):
        return True
    return not (isinstance(value, dict) and _is_container(value))


def _is_container(value: Mapping[str, Any]) -> bool:
    """LMFlow's file: {"type": T, "instances": [...]}."""
    return isinstance(value.get("instances"), list)


def _skip_space(stream: Any) -> tuple[int, bytes]:
    """Read over a byte-order mark and empty space; the number of the line that begins then, and its first bytes."""
    number = 1
    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    while (head := stream.peek(len(UTF16[0])))[:1].isspace():
        number += stream.read(1) == b"\n"
    return number, head


def _from_lines(first: bytes, rest: Iterable[bytes], file: Path, number: int) -> Found:
    for count, line in enumerate(chain([first], rest), number):
        if line.strip():
            yield record_of_line(line, f"{file.name}:{count}")


def record_of_line(line: bytes, place: str) -> Record | DataError:
    """The record of a line, or why it is none."""
    try:
        return record_of(json.loads(line), place)
    except json.JSONDecodeError as error:
        return DataError(f"{place}: not JSON at column {error.colno}: {error.msg}; each line must be one object")
    except UnicodeDecodeError as error:
        return DataError(_not_utf8(place, error))
    except ValueError as error:
        return DataError(f"{place}: {_unreadable_number(error)}")
    except RecursionError:
        return DataError(f"{place}: nested too deeply to be a record")


def _from_array(stream: IO[bytes], file: Path, line: int) -> Found:
    try:
        for number, value in enumerate(iterate_array(b"", stream), 1):
            yield record_of(value, f"{file.name}: record {number}")
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.name}:{error.lineno + line - 1}: not JSON at column {error.colno}: {error.msg}"
        ) from None


def _from_object(content: bytes, file: Path, line: int) -> Found:
    try:
        value = json.loads(_decoded(content, file))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.name}:{error.lineno + line - 1}: not JSON at column {error.colno}: {error.msg}"
        ) from None
    if isinstance(value, dict) and _is_container(value):
        declared = value.get("type")
        for number, instance in enumerate(value["instances"], 1):
            yield record_of(instance, f"{file.name}: instance {number}", declared)
    else:
        yield record_of(value, f"{file.name}: record 1")


def record_of(value: Any, place: str, declared: str | None = None) -> Record | DataError:
    """A value as a record, or why it is none."""
    if not isinstance(value, dict):
        return DataError(f"{place}: expected an object with named fields, found {describe(value)}")
    return Record(value, place, declared)


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(f"{file.name}:{line}", error)) from None


def _unreadable_number(error: ValueError) -> str:
    """What a whole number of thousands of digits is told as, which Python refuses to read."""
    return f"holds a number that cannot be read: {str(error).partition(';')[0]}"


def _not_utf8(place: str, error: UnicodeDecodeError) -> str:
    return f"{place}: not UTF-8 (byte {error.object[error.start]:#04x}); convert the file"


# Tables


def _from_table(file: Path, kind: str) -> Found:
    """Rows of a Parquet file, or of an Arrow file as the library datasets saves them."""
    pyarrow = _pyarrow(file)
    try:
        for number, row in enumerate(rows_of(file, kind), 1):
            yield record_of(row, f"{file.name}: row {number}")
    except (pyarrow.ArrowException, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{file}: broken {kind.removeprefix('.') or 'parquet'} file: {_first_line(error)}") from None


def iterate_hub(name: str) -> Found:
    """The training part of a data set on the hub, read as it arrives."""
    if hub_is_out_of_reach():
        raise DataError(f"{name} does not exist here, and the hub is out of reach")
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{name} does not exist. If it is a data set on the hub, reading it takes the library datasets: "
            "pip install 'lmflow-core[hub]'"
        ) from None
    try:
        rows = load_dataset(name, split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield record_of(row, f"{name}: row {number}")
    except DataError:
        raise
    except Exception as error:  # the library raises what its many back ends raise
        raise DataError(f"{name}: does not exist here, nor can it be read from the hub: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def iterate_records(path: str | Path) -> Iterator[Record | DataError]:
    """The records of a file, of the files directly in a directory, or of a data set on the hub, one after the other.

    A record that cannot be used comes as a DataError that says where it stands and why; what spoils a file as a whole
    (a broken archive, a cut-off array) is raised. Memory holds one record at a time, but for a file in LMFlow's own
    container, which is one JSON object.
    """
    if on_hub(path):
        yield from iterate_hub(str(path))
        return
    for file in data_files(Path(path)):
        yield from iterate_file(file)


def read_records(path: str | Path) -> list[Record]:
    """All records at `path`, as `iterate_records` finds them.

    Raises DataError naming file and line for the first that cannot be used, and where there is none.
    """
    records = []
    for record in iterate_records(path):
        if isinstance(record, DataError):
            raise record
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no record.")
    return records
