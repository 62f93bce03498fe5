"""From a recipe's data section to the samples of a run."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from lmflow.components import DataFormat
from lmflow.data.formats.recognising import LOOKED_AT, Auto, resolve_format
from lmflow.data.keys import key_of
from lmflow.data.record_index import RecordIndex, SamplesOnDisk
from lmflow.data.records import Record, files_of, fingerprint, iterate_records, size_of, unread_folders
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.errors import DataError

SHOWN = 5
"""Malformed records a message shows."""
LARGE = 256 << 20
"""Bytes of files from which on samples are read when they are needed, unless `data.streaming` says otherwise."""


@dataclass(frozen=True)
class DataSummary:
    """What run.json says of the data."""

    path: str | None
    format: str
    records: int
    train: int
    heldout: int
    sha256: str
    skipped: int = 0
    """Records that could not be used, under `data.on_bad_record skip`."""
    problems: tuple[str, ...] = ()
    """The first of them, and why."""
    fields: tuple[str, ...] = ()
    """Fields of the first record."""
    recognised: bool = False
    """Whether the format was found by looking at the records."""
    unread: tuple[str, ...] = ()
    """Folders in the directory that hold data too, and were not looked into."""

    def describe(self) -> str:
        """What the user is told: what was read as what, and what was left out."""
        noun = "record" if self.records == 1 else "records"
        what = f"embedded {noun}" if self.path is None else f"{noun} of {self.path}"
        how = f", recognised by {', '.join(self.fields)}" if self.recognised else ""
        text = (
            f"{self.records:,} {what} read as {self.format}{how}; {self.train:,} train, {self.heldout:,} are held out"
        )
        if self.skipped:
            text += f"\n  {_skipped(self.skipped, self.problems[0])}"
        if self.unread:
            text += f"\n  not read: {', '.join(f'{name}/' for name in self.unread)}; folders in a folder never are"
        return text


@dataclass
class Pool:
    """The samples of one place, and what was found wrong there."""

    format: DataFormat
    samples: Sequence[Sample]
    digest: str
    records: int
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    fields: tuple[str, ...] = ()
    shown: int | None = SHOWN
    """How many problems are kept; None for all."""


def _skipped(count: int, problem: str) -> str:
    """That records were left out, and why one of them was."""
    return f"{count:,} that cannot be used skipped, such as {problem}"


def load_dataset(data: DataFormat, formats: Sequence[type[DataFormat]], seed: int) -> tuple[Dataset, DataSummary]:
    """Read, interpret and split the records `data` describes.

    Raises DataError with the first malformed records, or when there is nothing to train on.
    """
    if data.mix:
        return _load_mix(data, formats, seed)
    held = None
    if data.path is None:
        pool, heldout = _embedded(data)
        train: Sequence[Sample] = pool.samples
    else:
        pool, held = read_pool(data, formats), validation_pool(data, formats)
        train, heldout = split(pool.samples, held, data, seed)
    key = train_key([pool], data, seed)
    return Dataset(train, heldout, pool.format, key), _summary(data, [pool], held, len(train), len(heldout))


def _load_mix(data: DataFormat, formats: Sequence[type[DataFormat]], seed: int) -> tuple[Dataset, DataSummary]:
    """Several places, each as often as its weight says; what is held out is not weighted."""
    pools = read_pools(data, formats)
    held = validation_pool(data, formats)
    parts = [split(pool.samples, held, data, seed) for pool in pools]
    weights = data.mix.items()
    train = [weighted(part, weight, f"{seed}/{path}") for (part, _), (path, weight) in zip(parts, weights, strict=True)]
    heldout = [sample for _, part in parts for sample in part] if held is None else list(held.samples)
    digest = hashlib.sha256(json.dumps([pool.digest for pool in pools]).encode()).hexdigest()
    whole = Concatenated(train)
    summary = replace(_summary(data, pools, held, len(whole), len(heldout)), path=", ".join(data.mix), sha256=digest)
    return Dataset(whole, heldout, pools[0].format, train_key(pools, data, seed)), summary


def places(data: DataFormat) -> list[tuple[DataFormat, str]]:
    """The data's options for each place that its samples come from, and the folder to name with its records.

    A folder is named where places of a mix have files of one name. Raises DataError where two options name the data.
    """
    if not data.mix:
        return [(data, "")]
    if data.path is not None:
        raise DataError("data.path and data.mix both name data; use one of them")
    files = {path: {file.name for file in files_of(path)} for path in data.mix}
    found = Counter(name for names in files.values() for name in names)
    return [
        (
            data.model_copy(update={"path": path, "mix": {}}),
            folder_of(path) if any(found[name] > 1 for name in names) else "",
        )
        for path, names in files.items()
    ]


def folder_of(path: str) -> str:
    """The folder that the files at `path` are in, as it goes before their names."""
    place = Path(path)
    return f"{place if place.is_dir() else place.parent}/"


def train_key(pools: Sequence[Pool], data: DataFormat, seed: int) -> str:
    """A digest of everything the samples that are trained on depend on: files, options, formats and their code."""
    formats = dict.fromkeys(type(pool.format) for pool in pools)
    code = [f"{each.__qualname__} {Path(inspect.getfile(each)).read_text(encoding='utf-8')}" for each in formats]
    return key_of(*(pool.digest for pool in pools), data.model_dump_json(exclude={"streaming"}), str(seed), *code)


def _summary(data: DataFormat, pools: Sequence[Pool], held: Pool | None, train: int, heldout: int) -> DataSummary:
    everything = [*pools, *([held] if held else [])]
    return DataSummary(
        path=data.path,
        format=", ".join(dict.fromkeys(pool.format.name for pool in pools)),
        records=sum(pool.records for pool in pools),
        train=train,
        heldout=heldout,
        sha256=pools[0].digest,
        skipped=sum(pool.skipped for pool in everything),
        problems=tuple(problem for pool in everything for problem in pool.problems)[:SHOWN],
        fields=pools[0].fields,
        recognised=isinstance(data, Auto) and len({pool.format.name for pool in pools}) == 1,
        unread=tuple(name for path in data.mix or [data.path] if path for name in unread_folders(path)),
    )


def read_samples(
    data: DataFormat, formats: Sequence[type[DataFormat]], note: Callable[[str], None] | None = None
) -> Sequence[Sample]:
    """Every record `data` describes, none held out; without a path, the held-out part of what the format brings.

    `note` is told of records that `data.on_bad_record` says to skip. Raises DataError with the first malformed records.
    """
    if data.path is None and not data.mix:
        return _embedded(data)[1][: data.limit]
    pools = read_pools(data, formats)
    if note is not None and (skipped := sum(pool.skipped for pool in pools)):
        note(_skipped(skipped, next(pool.problems[0] for pool in pools if pool.problems)))
    return pools[0].samples if len(pools) == 1 else Concatenated([pool.samples for pool in pools])


def read_pools(data: DataFormat, formats: Sequence[type[DataFormat]]) -> list[Pool]:
    """All samples of each place `data` describes, and what was left out there.

    Raises DataError with the first malformed records, unless `data.on_bad_record` says to skip them.
    """
    return [read_pool(place, formats, folder) for place, folder in places(data)]


def validation_pool(
    data: DataFormat, formats: Sequence[type[DataFormat]], read: Callable[..., Pool] | None = None
) -> Pool | None:
    """What is in the file that `data.validation` names, read by `read_pool`; None where that is a share."""
    if _as_share(data.validation) is not None:
        return None
    return (read or read_pool)(
        data.model_copy(update={"path": str(data.validation), "mix": {}, "limit": None}), formats
    )


def read_pool(data: DataFormat, formats: Sequence[type[DataFormat]], folder: str = "") -> Pool:
    """The samples of `data.path`; from large files they are read again whenever they are asked for.

    Raises DataError with the first malformed records, unless `data.on_bad_record` says to skip them.
    """
    pool = scan_pool(data, formats, folder)
    if pool.skipped and (data.on_bad_record == "error" or not len(pool.samples)):
        raise DataError(_bad_records(pool))
    return pool


def scan_pool(
    data: DataFormat, formats: Sequence[type[DataFormat]], folder: str = "", shown: int | None = SHOWN
) -> Pool:
    """All samples there are, and what is wrong with the other records: the first `shown` of them, or all.

    `folder` goes before the names of the files, which tells them from others of a mix. Raises DataError where the file
    as a whole, or its format, cannot be read.
    """
    if data.path is None:
        return _embedded(data)[0]
    found = renamed(placed(iterate_records(data.path), folder), data.columns)
    found = found if data.limit is None else islice(found, data.limit)
    first, records = look_at(found)
    if not first:
        return _unusable(data, [str(each) for each in records if isinstance(each, DataError)], shown)
    chosen = resolve_format(data, formats, first)
    alike = likeness(chosen, formats) if isinstance(data, Auto) else None
    large = data.streaming if data.streaming is not None else size_of(data.path) >= LARGE
    pool = Pool(chosen, [], fingerprint(data.path), 0, fields=tuple(first[0].fields), shown=shown)
    kept = RecordIndex() if large else None
    samples: list[Sample] = []
    for sample, record in interpreted(records, pool, alike):
        if kept is None:
            samples.append(sample)
        else:
            kept.append(record)
    pool.samples = samples if kept is None else SamplesOnDisk(kept, chosen)
    return pool


def look_at(found: Iterator[Record | DataError]) -> tuple[list[Record], Iterator[Record | DataError]]:
    """The first good records, none if there is none, and everything from the first on."""
    seen: list[Record | DataError] = []
    good: list[Record] = []
    for each in found:
        seen.append(each)
        good += [each] if isinstance(each, Record) else []
        if len(good) == LOOKED_AT:
            break
    return good, chain(seen, found)


def _unusable(data: DataFormat, problems: list[str], shown: int | None) -> Pool:
    """A pool without samples where all problems are wanted. Raises DataError with the first where they are not."""
    if shown is not None or not problems:
        raise DataError(problems[0] if problems else f"{data.path} holds no record.")
    count = len(problems)
    return Pool(data, [], fingerprint(str(data.path)), count, count, problems, shown=shown)


def likeness(chosen: DataFormat, formats: Sequence[type[DataFormat]]) -> Callable[[Record], bool]:
    """Whether a record is declared as the format that was recognised or one that it includes, or looks like that."""
    names = {chosen.name, *chosen.includes}
    kinds = [each for each in formats if each.name in names]
    return lambda record: (
        record.declared in names if record.declared else any(each.recognises(record.fields) for each in kinds)
    )


def interpreted(
    records: Iterable[Record | DataError], pool: Pool, alike: Callable[[Record], bool] | None = None
) -> Iterator[tuple[Sample, Record]]:
    """Every record that can be used, as a sample; `pool` counts those that cannot, and keeps the first problems.

    With `alike`, records that do not look like the others are among these, though the format might read a part of them.
    """
    for record in records:
        pool.records += 1
        try:
            if isinstance(record, DataError):
                raise record
            if alike is not None and not alike(record):
                raise DataError(_unlike(record, pool.format.name))
            yield pool.format.sample(record.fields, record.source), record
        except DataError as error:
            pool.skipped += 1
            pool.problems += [str(error)] if pool.shown is None or len(pool.problems) < pool.shown else []


def _unlike(record: Record, name: str) -> str:
    """That a record is of another format than those before it."""
    fields = ", ".join(record.fields) or "no field"
    what = (
        f"is declared as {record.declared}, which is not"
        if record.declared
        else f"has {fields}, which does not look like"
    )
    return f"{record.source}: {what} the {name} of the records before it; --data {name} reads it all the same"


def _bad_records(pool: Pool) -> str:
    more = f"\n… and {pool.skipped - SHOWN} more" if pool.skipped > SHOWN else ""
    count = f"{pool.skipped} of {pool.records} records do not fit format {pool.format.name}:\n"
    hint = "\nMend them (lmflow data check lists them all), or leave them out with --data.on_bad_record skip."
    return count + "\n".join(pool.problems) + more + hint


def placed(records: Iterable[Record | DataError], folder: str) -> Iterator[Record | DataError]:
    """The records with their folder before the name of their file."""
    for record in records:
        if isinstance(record, DataError):
            yield DataError(f"{folder}{record}")
        else:
            yield replace(record, source=f"{folder}{record.source}") if folder else record


def renamed(records: Iterable[Record | DataError], columns: Mapping[str, str]) -> Iterator[Record | DataError]:
    """The records with the fields that `columns` maps (ours to theirs) under our names."""
    ours = {theirs: mine for mine, theirs in columns.items()}
    for record in records:
        if isinstance(record, DataError) or not ours:
            yield record
            continue
        missing = [theirs for theirs in ours if theirs not in record.fields]
        if missing:
            fields = ", ".join(record.fields) or "no field"
            yield DataError(f"{record.source}: {missing[0]}: data.columns names it; the record has {fields}")
            continue
        kept = {name: value for name, value in record.fields.items() if name not in columns or name in ours}
        fields_of = {ours.get(name, name): value for name, value in kept.items()}
        yield replace(record, fields=fields_of)


def split(
    samples: Sequence[Sample], held: Pool | None, data: DataFormat, seed: int
) -> tuple[Sequence[Sample], list[Sample]]:
    """Training and held-out samples: those of the pool `held`, or a seeded share."""
    if held is not None:
        return samples, list(held.samples)
    share = _as_share(data.validation) or 0.0
    if share > 0 and len(samples) == 1 and is_text(samples[0]):
        return split_text(samples[0], share)
    count = round(share * len(samples))
    if share > 0 and len(samples) > 1:
        count = min(max(count, 1), len(samples) - 1)
    order = array("q", range(len(samples)))
    random.Random(f"{seed}/split").shuffle(order)
    taken = bytearray(len(samples))
    for index in order[:count]:
        taken[index] = True
    train = array("q", (index for index in range(len(samples)) if not taken[index]))
    return chosen_of(samples, train), [samples[index] for index in order[:count]]


def weighted(samples: Sequence[Sample], weight: float, seed: str) -> Sequence[Sample]:
    """Every sample as often as `weight` has whole parts, and a seeded share of them once more for the rest of it."""
    if not 0 < weight < math.inf:
        raise DataError(f"data.mix: a weight must be a number above 0, got {weight}")
    times = int(weight)
    further = random.Random(seed).sample(range(len(samples)), round((weight - times) * len(samples)))
    return chosen_of(samples, array("q", [*list(range(len(samples))) * times, *sorted(further)]))


def chosen_of(samples: Sequence[Sample], indices: array[int]) -> Sequence[Sample]:
    """Those samples, in that order; of samples on disk, where they lie."""
    return samples.chosen(indices) if isinstance(samples, SamplesOnDisk) else [samples[index] for index in indices]


class Concatenated(Sequence[Sample]):
    """Several sequences of samples, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]  # type: ignore[misc]
        position = range(len(self))[index]
        for part in self._parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise IndexError(index)


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


def _embedded(data: DataFormat) -> tuple[Pool, list[Sample]]:
    """What the format brings: the pool to train on, and the samples that are held out."""
    brought = data.embedded()
    if brought is None:
        raise DataError(f"Format {data.name} brings no data of its own; give a file with --data.path.")
    train, heldout = (
        [Record(fields, f"{data.name}: record {number}") for number, fields in enumerate(part, 1)] for part in brought
    )
    digest = hashlib.sha256(json.dumps([[dict(r.fields) for r in part] for part in (train, heldout)]).encode())
    pool = Pool(data, [], digest.hexdigest(), 0)
    pool.samples = [sample for sample, _ in interpreted(train[: data.limit], pool)]
    return pool, [sample for sample, _ in interpreted(heldout, Pool(data, [], "", 0))]
