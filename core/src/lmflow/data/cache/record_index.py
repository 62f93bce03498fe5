"""Where the records of large files lie, so that each can be read when it is needed."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Sequence
from typing import IO, overload

from lmflow.components import DataFormat
from lmflow.data.record import Record
from lmflow.data.sample import Sample
from lmflow.errors import DataError


class RecordIndex:
    """Records on disk, of which memory holds the places, 8 bytes each.

    They are written to one temporary file, so that whatever container a record came in, it is then a line at a known
    place. The file has no name and is gone with the process, however that ends.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="lmflow-records-")  # noqa: SIM115 - it lives as long as the index
        self._ends = array("q")
        self._end = 0

    def append(self, record: Record) -> None:
        """Keep a record. Raises OSError where the disk is full."""
        text = json.dumps([record.source, record.fields], ensure_ascii=False, default=str)
        line = text.encode("utf-8", "surrogatepass") + b"\n"  # fields that no format reads may hold half a character
        self._file.write(line)
        self._end += len(line)
        self._ends.append(self._end)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Record:
        self._file.flush()
        start = self._ends[index - 1] if index else 0
        source, fields = json.loads(os.pread(self._file.fileno(), self._ends[index] - start, start))
        return Record(fields, source)

    def __getstate__(self) -> tuple[str, bytes]:
        """Where another process of this machine finds the file as long as this one is there, and the places in it."""
        self._file.flush()
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}", self._ends.tobytes()

    def __setstate__(self, state: tuple[str, bytes]) -> None:
        place, ends = state
        self._file = open(place, "rb")  # noqa: SIM115 - it lives as long as the index
        self._ends = array("q", ends)
        self._end = self._ends[-1] if self._ends else 0


class SamplesOnDisk(Sequence[Sample]):
    """Samples that are made of their records whenever they are asked for."""

    def __init__(self, records: RecordIndex, data: DataFormat, indices: Sequence[int] | None = None) -> None:
        self._records = records
        self._data = data
        self._indices = range(len(records)) if indices is None else indices

    def chosen(self, indices: Sequence[int]) -> SamplesOnDisk:
        """Those of these samples, in that order."""
        return SamplesOnDisk(self._records, self._data, array("q", (self._indices[index] for index in indices)))

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self._records[self._indices[index]]
        try:
            return self._data.sample(record.fields, record.source)
        except DataError as error:  # it was read once before
            raise DataError(f"{error} (it was another when the run began)") from None
