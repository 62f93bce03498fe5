"""Samples of one format as records of another, with what the other cannot hold found by reading them again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow.components import DataFormat
from lmflow.data.sample import Sample
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


@dataclass(frozen=True, slots=True)
class Converted:
    """A sample as a record of the other format; what that lost, empty if nothing."""

    record: Mapping[str, Any]
    lost: tuple[str, ...]
    source: str


def convert(samples: Iterable[Sample], target: DataFormat) -> Iterator[Converted]:
    """Each sample as a record of `target`, which is read again and compared.

    Raises DataError naming the sample where `target` cannot hold it at all.
    """
    for sample in samples:
        record = target.record(sample)
        again = target.sample(record, sample.source)
        lost = tuple(words for field, words in HELD.items() if getattr(again, field) != getattr(sample, field))
        yield Converted(record, lost, sample.source)


def write_records(path: Path, records: Iterable[Mapping[str, Any]], declared: str | None = None) -> int:
    """Write records as JSON lines, or as LMFlow's object of the type `declared`; `.gz` compresses. Returns how many.

    Raises DataError where a file is there already.
    """
    if path.exists():
        raise DataError(f"{path} exists already; choose another file")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        if declared is not None:
            instances = list(records)
            json.dump({"type": declared, "instances": instances}, file, ensure_ascii=False, indent=1)
            return len(instances)
        count = 0
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
        return count
