"""Samples of one format as records of another, with what the other cannot hold found by reading them again."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from lmflow.components import DataFormat
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

HELD: Mapping[str, str] = {
    "messages": "the dialogue as it is",
    "templated": "whether a chat template is put around it",
    "tools": "tools",
    "rejected": "the rejected answer",
    "label": "the label",
    "answers": "the other answers, or their scores",
}
"""What a sample says, and how a user calls it."""
ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Converted:
    """A sample as a record of the other format; what that lost, empty if nothing."""

    record: Mapping[str, Any]
    lost: tuple[str, ...]
    source: str
    unread: tuple[str, ...] = ()
    """Fields of the old record that its format does not read, so that the new one is without them."""


def convert(samples: Iterable[Sample], target: DataFormat, origin: DataFormat | None = None) -> Iterator[Converted]:
    """Each sample as a record of `target`, which is read again and compared; `origin` read the samples.

    Raises DataError naming the sample where `target` cannot hold it at all.
    """
    for sample in samples:
        record = target.record(sample)
        again = target.sample(record, sample.source)
        yield Converted(
            record,
            tuple(lost_parts(again, sample)),
            sample.source,
            tuple(unread_fields(sample, origin)) if origin else (),
        )


def lost_parts(again: Sample, sample: Sample) -> Iterator[str]:
    """What `again` does not say of what `sample` says, as a user calls it."""
    for part in different(again, sample):
        same_text = part == "messages" and unlinked(again.messages) == unlinked(sample.messages)
        yield "which tool and which call an answer belongs to" if same_text else HELD[part]


def unlinked(turns: Sequence[Message]) -> list[Message]:
    """The turns without what ties a tool's answer to its call."""
    calls = [tuple({**call, "id": None} for call in turn.tool_calls) for turn in turns]
    return [
        replace(turn, tool_calls=each, name=None, tool_call_id=None) for turn, each in zip(turns, calls, strict=True)
    ]


def different(one: Sample, other: Sample) -> list[str]:
    """The parts in which two samples do not say the same."""
    return [part for part in HELD if getattr(one, part) != getattr(other, part)]


def unread_fields(sample: Sample, origin: DataFormat) -> Iterator[str]:
    """Fields of the sample's record that say something and without which `origin` reads the same."""
    for field, value in sample.record.items():
        if value in (None, "", [], {}):
            continue
        rest = {name: each for name, each in sample.record.items() if name != field}
        try:
            if not different(origin.sample(rest, sample.source), sample):
                yield field
        except DataError:
            continue  # it is needed


def check_output(path: Path) -> None:
    """Raises DataError where records cannot be written to `path`."""
    if path.exists():
        raise DataError(f"{path} exists already; choose another file")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no directory {path.parent}")
    if Path(path.name.removesuffix(".gz")).suffix not in ENDINGS:
        raise DataError(f"{path}: JSON lines are written; let the name end with {', '.join(ENDINGS)}, or these and .gz")


def write_records(path: Path, records: Iterable[Mapping[str, Any]], declared: str | None = None) -> int:
    """Write records as JSON lines, or as LMFlow's object of the type `declared`; `.gz` compresses. Returns how many.

    The file is there when all of it is. Raises DataError where it cannot be written, or is there already.
    """
    check_output(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else part.open("w", encoding="utf-8") as file
        ):
            count = _write(file, records, declared)
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return count


def _write(file: IO[str], records: Iterable[Mapping[str, Any]], declared: str | None) -> int:
    """A record a line, between the brackets of LMFlow's object if there is one."""
    between = "\n" if declared is None else ",\n"
    count = 0
    if declared is not None:
        file.write(f'{{"type": {json.dumps(declared)}, "instances": [\n')
    for count, record in enumerate(records, 1):
        file.write((between if count > 1 else "") + json.dumps(record, ensure_ascii=False))
    file.write("\n" if declared is None else "\n]}\n")
    return count
