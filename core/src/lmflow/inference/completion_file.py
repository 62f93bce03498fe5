"""A file of completions, one JSON object per line, that an interrupted command can go on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lmflow.atomic import write_atomically
from lmflow.data.sample import Sample
from lmflow.errors import DataError, RunDirectoryError
from lmflow.run_files import to_json


def fingerprint(options: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell one set of options from another."""
    text = json.dumps(options, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class CompletionFile:
    """Records are appended as they finish, in any order, and put in order at the end.

    Each record carries `options`, the fingerprint of what it was made with. With `resume` the records there are kept,
    but for a torn last line and those with an `error`. Raises RunDirectoryError for a file that is there without
    `resume` or `overwrite`, that was made with other options, or that answers other prompts.
    """

    def __init__(
        self, path: Path, samples: Sequence[Sample], options: str, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.path = path
        self._options = options
        self._samples = samples
        if path.exists() and not path.is_file():
            raise RunDirectoryError(f"{path} is not a file; --output takes the file to write")
        if path.exists() and path.stat().st_size and not (resume or overwrite):
            raise RunDirectoryError(f"{path} exists. Continue it with --resume, or replace it with --overwrite.")
        self._records = self._kept() if resume and path.exists() else {}

    def __enter__(self) -> CompletionFile:
        """Only from here on is anything written."""
        self._rewrite()
        self._stream = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            self._rewrite()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def expected(self) -> int:
        """How many records there are in the end."""
        return len(self._samples)

    @property
    def records(self) -> Sequence[Mapping[str, Any]]:
        """What is finished, in the order of the prompts."""
        return [self._records[index] for index in sorted(self._records)]

    def missing(self) -> dict[int, Sample]:
        """The samples without a record, by index."""
        return {index: sample for index, sample in enumerate(self._samples) if index not in self._records}

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; once this returns it survives the end of the process."""
        written = {**record, "options": self._options}
        self._records[record["index"]] = written
        self._stream.write(_line(written))
        self._stream.flush()

    def _kept(self) -> dict[int, Mapping[str, Any]]:
        lines = self.path.read_bytes().decode("utf-8", errors="replace").split("\n")
        lines.pop()  # empty, or torn: a complete record ends with a newline
        records = {}
        for number, line in enumerate(lines, 1):
            record = self._checked(line, f"{self.path}:{number}")
            if "error" not in record:
                records[int(record["index"])] = record
        return records

    def _checked(self, line: str, place: str) -> Mapping[str, Any]:
        """The record of a line, if it belongs to these prompts and options."""
        try:
            record = json.loads(line)
            index, prompt, options = record["index"], record["prompt"], record["options"]
            sample = self._samples[index]
        except (ValueError, KeyError, TypeError, IndexError):
            raise RunDirectoryError(
                f"{place}: this is no record of an output for these prompts; replace the file with --overwrite"
            ) from None
        if prompt != sample.prompt_text:
            raise RunDirectoryError(
                f"{place}: it answers another prompt than record {index} of the input does now; replace the file with "
                "--overwrite, or give the input it was begun with"
            )
        if options != self._options:
            raise RunDirectoryError(
                f"{place}: it was made with another model or other options; resume with those of the first call, or "
                "replace the file with --overwrite"
            )
        return dict(record)

    def _rewrite(self) -> None:
        """The file anew with the records in order; the old one stays until the new one is complete."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, "".join(map(_line, self.records)))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error


def _line(record: Mapping[str, Any]) -> str:
    return to_json(record) + "\n"
