"""Token sequences on disk: written one after the other, read at random, never all in memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from lmflow.atomic import move_into_place, scratch_directory
from lmflow.data.sample import TokenSequence

INDEX = "index.json"
COLUMNS: Mapping[str, np.dtype[Any]] = {
    "ids": np.dtype("i4"),
    "trained": np.dtype("?"),
    "ends": np.dtype("i8"),
    "sources": np.dtype("u1"),
    "source_ends": np.dtype("i8"),
}
"""The files of a store. `ends` and `source_ends` say where each sequence ends in the files before them."""


class StoredSequences(Sequence[TokenSequence]):
    """The sequences of a store, read when they are asked for; about 30 bytes of memory each."""

    def __init__(self, directory: Path) -> None:
        """Open the store at `directory`. Raises OSError or ValueError where it is not whole."""
        self.about: Mapping[str, Any] = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        self._columns = {name: _mapped(directory / name, dtype) for name, dtype in COLUMNS.items()}
        found = {name: column.nbytes for name, column in self._columns.items()}
        if found != self.about["bytes"]:
            raise ValueError(f"{directory} is damaged: its files hold {found} bytes, not {self.about['bytes']}")

    def __len__(self) -> int:
        return len(self._columns["ends"])

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...
    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        here, name = self._span("ends", position), self._span("source_ends", position)
        return TokenSequence(
            self._columns["ids"][here].tolist(),
            self._columns["trained"][here].tolist(),
            self._columns["sources"][name].tobytes().decode(),
        )

    def _span(self, ends: str, position: int) -> slice:
        column = self._columns[ends]
        return slice(int(column[position - 1]) if position else 0, int(column[position]))


def write_store(directory: Path, sequences: Iterable[TokenSequence], about: Callable[[], Mapping[str, Any]]) -> None:
    """Write sequences without `model_inputs` to `directory`, which appears whole or not at all; one there is replaced.

    `about` is asked after the last sequence for what the index is to hold beside the sizes of the files.
    """
    with scratch_directory(directory) as scratch:
        with ExitStack() as stack:
            files = {name: stack.enter_context((scratch / name).open("wb")) for name in COLUMNS}
            _write_columns(files, sequences)
            sizes = {name: file.tell() for name, file in files.items()}
        (scratch / INDEX).write_text(json.dumps({**about(), "bytes": sizes}), encoding="utf-8")
        try:
            move_into_place(scratch, directory, replace=True)
        except OSError:
            if not (directory / INDEX).exists():  # else another process wrote the same store in the meantime
                raise


class HeldSequences(StoredSequences):
    """The same in memory, about five bytes a token, where no disk can hold them."""

    def __init__(self, sequences: Iterable[TokenSequence], about: Callable[[], Mapping[str, Any]]) -> None:
        """Make all of them; `about` is asked after the last."""
        held = {name: BytesIO() for name in COLUMNS}
        _write_columns(held, sequences)
        self.about = about()
        self._columns = {name: np.frombuffer(held[name].getbuffer(), dtype) for name, dtype in COLUMNS.items()}


def _write_columns(files: Mapping[str, BinaryIO], sequences: Iterable[TokenSequence]) -> None:
    end = source_end = 0
    for sequence in sequences:
        source = sequence.source.encode()
        end, source_end = end + len(sequence), source_end + len(source)
        files["ids"].write(array("i", sequence.ids))  # several times as fast as by way of numpy
        files["trained"].write(bytes(sequence.loss_mask))
        files["ends"].write(array("q", [end]))
        files["sources"].write(source)
        files["source_ends"].write(array("q", [source_end]))


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """The file's values without reading them; a file without bytes cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
