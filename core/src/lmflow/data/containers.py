"""The containers records come in: JSON lines, JSON, LMFlow's object, text, CSV, Parquet, Arrow, and the hub."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lmflow.data.compression import begins_with, need_pyarrow, open_decompressed
from lmflow.data.delimited import from_delimited
from lmflow.data.endings import ending
from lmflow.data.files import data_files, on_hub, saved_folder
from lmflow.data.json_files import decoded, from_json
from lmflow.data.layout import is_laid_out, named_splits
from lmflow.data.library import is_installed, iterate_folder, iterate_hub, iterate_saved
from lmflow.data.record import Found, Record, first_line, not_utf8, record_of, unreadable_number
from lmflow.data.tables import rows_of
from lmflow.errors import DataError

PARQUET = b"PAR1"
LINES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
"""Endings of files whose records have lines or numbers of their own."""


def iterate_file(file: Path) -> Found:
    """The records of one file; see `lmflow.data.files.iterate_records`."""
    kind = ending(file)
    with explained(file):
        if kind in (".parquet", ".arrow") or begins_with(file, PARQUET):
            yield from _from_table(file, kind)
            return
        with open_decompressed(file) as stream:
            if kind == ".txt":
                yield from _from_text(stream, file)
            elif kind in (".csv", ".tsv"):
                yield from from_delimited(stream, file)
            else:
                yield from from_json(stream, file)


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
        raise DataError(not_utf8(file.name, error)) from None
    except ValueError as error:
        raise DataError(f"{file}: {unreadable_number(error)}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


# Text


def _from_text(stream: IO[bytes], file: Path) -> Found:
    text = decoded(stream.read(), file)
    if text.strip():
        yield Record({"text": text}, file.name)


# Tables


def _from_table(file: Path, kind: str) -> Found:
    """Rows of a Parquet file, or of an Arrow file as the library datasets saves them."""
    pyarrow = need_pyarrow(file)
    try:
        for number, row in enumerate(rows_of(file, kind), 1):
            yield record_of(row, f"{file.name}: row {number}")
    except (pyarrow.ArrowException, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{file}: broken {kind.removeprefix('.') or 'parquet'} file: {first_line(error)}") from None


def iterate_records(path: str | Path, subset: str | None = None, split: str | None = None) -> Found:
    """The records of a file, of the files directly in a directory, or of a part of a data set, one after the other.

    A data set is one on the hub, one saved by the library datasets, or a folder laid out as on the hub; `subset` and
    `split` name its part (see `lmflow.data.files.data_files`).
    A record that cannot be used comes as a DataError that says where it stands and why; what spoils a file as a whole
    (a broken archive, a cut-off array) is raised. Memory holds one record at a time.
    """
    if on_hub(path):
        yield from iterate_hub(str(path), subset, split)
        return
    files = data_files(Path(path), subset, split)
    if is_installed() and (saved := saved_folder(Path(path), split)) is not None:
        name = Path(path).name
        yield from iterate_saved(saved, name if saved.name in (name, "train") else f"{name}/{saved.name}")
    elif is_installed() and read_by_library(Path(path), files, subset, split):
        yield from iterate_folder(Path(path), subset, split)
    else:
        for file in files:
            yield from iterate_file(file)


def read_by_library(path: Path, files: Sequence[Path], subset: str | None, split: str | None) -> bool:
    """Whether the library datasets reads a folder: one that is laid out as on the hub, and whose rows have no lines."""
    is_named = subset is None and bool(named_splits(path))
    return is_laid_out(path, subset, split) and not is_named and not names_lines(files)


def names_lines(files: Sequence[Path]) -> bool:
    """Whether all the files are read here, as that tells the line of a bad record."""
    return all(ending(file) in LINES for file in files)


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
