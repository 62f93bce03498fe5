"""Compressed files, found by their first bytes, whatever their names say."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any, cast

from lmflow.errors import DataError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def open_decompressed(file: Path) -> IO[bytes]:
    """The bytes of a file, of a compressed one those inside, whatever its name says."""
    if begins_with(file, GZIP):
        return cast(IO[bytes], gzip.open(file))
    if begins_with(file, ZSTD):
        return _open_zstd(file)
    return file.open("rb")


def begins_with(file: Path, magic: bytes) -> bool:
    """Whether these are the first bytes of the file."""
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _open_zstd(file: Path) -> IO[bytes]:
    pyarrow = need_pyarrow(file)
    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"), 1 << 20)


def need_pyarrow(file: Path) -> Any:
    """The library pyarrow, with which the file is read. Raises DataError where it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{file}: reading it takes pyarrow: pip install 'lmflow-core[tables]'") from None
    return pyarrow
