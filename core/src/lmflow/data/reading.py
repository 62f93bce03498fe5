"""From a recipe's data section to the samples of a run."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmflow.components import DataFormat
from lmflow.data.formats import resolve_format
from lmflow.data.records import Record, fingerprint, read_records
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.errors import DataError

SHOWN = 5
"""Malformed records a message shows."""


@dataclass(frozen=True)
class DataSummary:
    """What run.json says of the data."""

    path: str | None
    format: str
    records: int
    train: int
    heldout: int
    sha256: str


def load_dataset(data: DataFormat, formats: Sequence[type[DataFormat]], seed: int) -> tuple[Dataset, DataSummary]:
    """Read, interpret and split the records `data` describes.

    Raises DataError with the first malformed records, or when there is nothing to train on.
    """
    if data.path is None:
        records, heldout_records, digest = _embedded(data)
        chosen = data
    else:
        records, digest = read_records(Path(data.path)), fingerprint(Path(data.path))
        chosen = resolve_format(data, formats, records)
        heldout_records = None
    records = records[: data.limit]
    samples = to_samples(chosen, records)
    if heldout_records is not None:
        train, heldout = samples, to_samples(chosen, heldout_records)
    else:
        train, heldout = split(samples, data, formats, seed)
    summary = DataSummary(data.path, chosen.name, len(records), len(train), len(heldout), digest)
    return Dataset(train, heldout, chosen), summary


def read_samples(data: DataFormat, formats: Sequence[type[DataFormat]]) -> list[Sample]:
    """Every record `data` describes, none held out; without a path, the held-out part of what the format brings.

    Raises DataError with the first malformed records.
    """
    if data.path is None:
        _, records, _ = _embedded(data)
        chosen = data
    else:
        records = read_records(Path(data.path))
        chosen = resolve_format(data, formats, records)
    return to_samples(chosen, records[: data.limit])


def to_samples(data: DataFormat, records: Sequence[Record]) -> list[Sample]:
    """Every record as a sample; all malformed ones are counted and the first few shown in one DataError."""
    samples, problems = [], []
    for record in records:
        try:
            samples.append(data.sample(record.fields, record.source))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f"\n… and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        count = f"{len(problems)} of {len(records)} records do not fit format {data.name}:\n"
        raise DataError(count + "\n".join(problems[:SHOWN]) + more)
    return samples


def split(
    samples: Sequence[Sample], data: DataFormat, formats: Sequence[type[DataFormat]], seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out samples: a seeded share, or those of the file that `data.validation` names."""
    share = _as_share(data.validation)
    if share is None:
        place = Path(str(data.validation))
        records = read_records(place)
        chosen = resolve_format(data.model_copy(update={"path": str(place)}), formats, records)
        return list(samples), to_samples(chosen, records)
    if share > 0 and len(samples) == 1 and is_text(samples[0]):
        return split_text(samples[0], share)
    count = round(share * len(samples))
    if share > 0 and len(samples) > 1:
        count = min(max(count, 1), len(samples) - 1)
    order = list(range(len(samples)))
    random.Random(f"{seed}/split").shuffle(order)
    chosen_indices = set(order[:count])
    train = [sample for index, sample in enumerate(samples) if index not in chosen_indices]
    return train, [samples[index] for index in order[:count]]


def is_text(sample: Sample) -> bool:
    """Whether the sample is plain text rather than a dialogue."""
    return not sample.templated and len(sample.messages) == 1


def split_text(sample: Sample, share: float) -> tuple[list[Sample], list[Sample]]:
    """One text as two: its last share, from the beginning of a line, is held out."""
    text = sample.messages[0].content
    at = text.rfind("\n", 0, round(len(text) * (1 - share))) + 1
    if not at:
        return [sample], []
    parts = (text[:at], "training part"), (text[at:], "held-out part")
    train, heldout = (
        replace(sample, messages=(Message("assistant", part),), source=f"{sample.source} ({name})")
        for part, name in parts
    )
    return [train], [heldout]


def _as_share(validation: float | str) -> float | None:
    """The fraction to hold out, None if `validation` is a path. Raises DataError for a fraction outside [0, 1)."""
    try:
        share = float(validation)
    except ValueError:
        return None
    if not 0 <= share < 1:
        raise DataError(f"data.validation: {validation} is neither a share of the records (0 to 1) nor a file")
    return share


def _embedded(data: DataFormat) -> tuple[list[Record], list[Record], str]:
    brought = data.embedded()
    if brought is None:
        raise DataError(f"Format {data.name} brings no data of its own; give a file with --data.path.")
    train, heldout = (
        [Record(fields, f"{data.name}: record {number}") for number, fields in enumerate(part, 1)] for part in brought
    )
    digest = hashlib.sha256(json.dumps([[dict(r.fields) for r in part] for part in (train, heldout)]).encode())
    return train, heldout, digest.hexdigest()
