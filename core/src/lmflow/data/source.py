"""The samples of one place: a file, a directory, a data set on the hub, or what a format brings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from lmflow.components import DataFormat
from lmflow.data.cache.record_index import RecordIndex, SamplesOnDisk
from lmflow.data.columns import FieldWatch, renamed, unmet, without
from lmflow.data.containers import iterate_records
from lmflow.data.files import files_of, fingerprint, has_splits, on_hub, size_of
from lmflow.data.formats.by_columns import advice_on_columns
from lmflow.data.formats.labels import is_labelled, read_record
from lmflow.data.formats.recognising import LOOKED_AT, Formats
from lmflow.data.formats.unread import fields_read, listed
from lmflow.data.record import Record
from lmflow.data.sample import Sample
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions, Reading

SHOWN = 5
"""Malformed records a message shows."""


LARGE = 256 << 20
"""Bytes of files from which on samples are read when they are needed, unless `data.streaming` says otherwise."""


@dataclass
class Source:
    """The samples of one place, and what was found wrong there."""

    format: DataFormat | None
    """What the records mean; None where there is none that it could be recognised by."""
    samples: Sequence[Sample]
    digest: str
    records: int
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    fields: tuple[str, ...] = ()
    """Fields of the first records that the format reads."""
    unread: tuple[str, ...] = ()
    """Fields of them that say something and that it does not read."""
    shown: int | None = SHOWN
    """How many problems are kept; None for all."""
    watch: FieldWatch | None = None
    """Which fields that options name there are."""


def _skipped(count: int, problem: str) -> str:
    """That records were left out, and why one of them was."""
    return f"{count:,} that cannot be used skipped, such as {problem}"


def places(data: Reading) -> list[tuple[Reading, str]]:
    """The data's options for each place that its samples come from, and the folder to name with its records.

    A folder is named where places of a mix have files of one name. Raises DataError where two options name the data.
    """
    if not data.mix:
        return [(data, "")]
    if data.path is not None:
        raise DataError("data.path and data.mix both name data; use one of them")
    files = {path: {file.name for file in files_of(path, data.subset, data.split)} for path in data.mix}
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


def read_sources(data: Reading, formats: Formats) -> list[Source]:
    """All samples of each place `data` describes, and what was left out there.

    Raises DataError with the first malformed records, unless `data.on_bad_record` says to skip them.
    """
    return [read_source(place, formats, folder) for place, folder in places(data)]


def validation_source(data: DataOptions, formats: Formats, read: Callable[..., Source] | None = None) -> Source | None:
    """What is in the file that `data.validation` names, read by `read_source`; None where that is a share.

    Of the data set that is trained on it is the split called validation.
    """
    place = validation_place(data)
    return None if place is None else (read or read_source)(place, formats)


def validation_place(data: DataOptions) -> DataOptions | None:
    """The options with which what `data.validation` names is read; None where that is a share."""
    if _as_share(data.validation) is not None:
        return None
    path = str(data.validation)
    same = path == data.path and has_splits(path)
    part = {"split": "validation"} if same else {"subset": None, "split": None}
    return data.model_copy(update={"path": path, "mix": {}, "limit": None, **part})


def read_source(data: Reading, formats: Formats, folder: str = "") -> Source:
    """The samples of `data.path`; from large files they are read again whenever they are asked for.

    Raises DataError with the first malformed records, unless `data.on_bad_record` says to skip them.
    """
    source = scan_source(data, formats, folder)
    if source.skipped and (data.on_bad_record == "error" or not len(source.samples)):
        raise DataError(_bad_records(source))
    return source


def scan_source(data: Reading, formats: Formats, folder: str = "", shown: int | None = SHOWN) -> Source:
    """All samples there are, and what is wrong with the other records: the first `shown` of them, or all.

    `folder` goes before the names of the files, which tells them from others of a mix. Raises DataError where the file
    as a whole, or its format, cannot be read.
    """
    if data.path is None:
        return _embedded(data, formats)[0]
    part = (data.path, data.subset, data.split)
    watch = FieldWatch(names_given(data))
    found = renamed(without(watch.over(placed(iterate_records(*part), folder)), data.ignore), data.columns)
    found = found if data.limit is None else islice(found, data.limit)
    first, records = peek(found)
    if not first:
        problems = [str(each) for each in records if isinstance(each, DataError)]
        return _unusable(part, formats.chosen, problems, shown)
    if len(first) == 1 and (advice := advice_on_columns(first[0], formats, data.path)):
        raise DataError(advice)
    chosen = formats.resolve(first)
    alike = format_matcher(chosen, formats.installed) if formats.chosen is None else None
    if not on_hub(data.path):
        place = Path(data.path)
        chosen = chosen.in_folder(place if place.is_dir() else place.parent)
    large = data.streaming if data.streaming is not None else size_of(*part) >= LARGE
    fields, unread = fields_read(chosen, first)
    source = Source(chosen, [], fingerprint(*part), 0, fields=fields, unread=unread, shown=shown, watch=watch)
    kept = RecordIndex() if large else None
    samples: list[Sample] = []
    for sample, record in interpreted(records, chosen, source, alike):
        if kept is None:
            samples.append(sample)
        else:
            kept.append(record)
    source.samples = samples if kept is None else SamplesOnDisk(kept, chosen)
    return source


def names_given(data: Reading) -> dict[str, list[str]]:
    """Fields that the options name and that records may lack, by option."""
    inside = [theirs for mine, theirs in data.columns.items() if "." in mine and "." in theirs]
    return {"data.ignore": data.ignore, "data.columns": inside}


def unmet_names(sources: Iterable[Source | None], data: Reading) -> list[str]:
    """That no record has a field that the options name; these may be misspelt, so that what is ignored is not.

    Raises DataError with them where all records were read; the first few may lack what others have.
    """
    watches = [source.watch for source in sources if source is not None and source.watch is not None]
    told = unmet(watches, "no record" if data.limit is None else "none of the records read")
    if told and data.limit is None:
        raise DataError("\n".join([*told, "Correct the name, or leave it out."]))
    return told


def count_records(data: Reading) -> int | None:
    """How many records there are at the data's places, good or bad; None where counting them takes long."""
    parts = [(str(place.path), place.subset, place.split) for place, _ in places(data) if place.path is not None]
    if not parts or any(on_hub(path) for path, _, _ in parts) or sum(size_of(*part) for part in parts) >= LARGE:
        return None
    return sum(1 for part in parts for _ in iterate_records(*part))


def peek(found: Iterator[Record | DataError]) -> tuple[list[Record], Iterator[Record | DataError]]:
    """The first good records, none if there is none, and everything from the first on."""
    seen: list[Record | DataError] = []
    good: list[Record] = []
    for each in found:
        seen.append(each)
        good += [each] if isinstance(each, Record) else []
        if len(good) == LOOKED_AT:
            break
    return good, chain(seen, found)


def _unusable(
    part: tuple[str, str | None, str | None], chosen: DataFormat | None, problems: list[str], shown: int | None
) -> Source:
    """A source without samples where all problems are wanted. Raises DataError with the first where they are not."""
    if shown is not None or not problems:
        raise DataError(problems[0] if problems else f"{part[0]} holds no record.")
    count = len(problems)
    return Source(chosen, [], fingerprint(*part), count, count, problems, shown=shown)


def format_matcher(chosen: DataFormat, formats: Sequence[type[DataFormat]]) -> Callable[[Record], bool]:
    """Whether a record is declared as the format that was recognised or one that it includes, or looks like that."""
    names = {chosen.name, *chosen.includes}
    kinds = [each for each in formats if each.name in names]
    return lambda record: (
        record.declared in names
        if record.declared
        else any(each.recognises(fields) for each in kinds for fields in (record.fields, record.present))
    )


def interpreted(
    records: Iterable[Record | DataError],
    chosen: DataFormat,
    source: Source,
    alike: Callable[[Record], bool] | None = None,
) -> Iterator[tuple[Sample, Record]]:
    """Every record that `chosen` can use, as a sample; `source` counts the others, and keeps the first problems.

    With `alike`, records that do not look like the others are among these, though the format might read a part of them.
    """
    for record in records:
        source.records += 1
        try:
            if isinstance(record, DataError):
                raise record
            if alike is not None and not alike(record):
                raise DataError(_unlike(record, chosen.name))
            yield read_record(chosen, record), record
        except DataError as error:
            source.skipped += 1
            source.problems += [str(error)] if source.shown is None or len(source.problems) < source.shown else []


def _unlike(record: Record, name: str) -> str:
    """That a record is of another format than those before it."""
    fields = listed(list(record.fields)) or "no field"
    what = (
        f"is declared as {record.declared}, which is not"
        if record.declared
        else f"has {fields}, which does not look like"
    )
    way = f"--data {name} reads it all the same"
    if is_labelled(record.fields):
        way = "keep records with a label in a file of their own, or leave it out with --data.ignore"
    return f"{record.source}: {what} the {name} of the records before it; {way}"


def _bad_records(source: Source) -> str:
    more = f"\n… and {source.skipped - SHOWN} more" if source.skipped > SHOWN else ""
    name = source.format.name if source.format else "any"
    count = f"{source.skipped} of {source.records} records do not fit format {name}:\n"
    hint = "\nMend them (lmflow data check lists them all), or leave them out with --data.on_bad_record skip."
    return count + "\n".join(source.problems) + more + hint


def placed(records: Iterable[Record | DataError], folder: str) -> Iterator[Record | DataError]:
    """The records with their folder before the name of their file."""
    for record in records:
        if isinstance(record, DataError):
            yield DataError(f"{folder}{record}")
        else:
            yield replace(record, source=f"{folder}{record.source}") if folder else record


def _as_share(validation: float | str) -> float | None:
    """The fraction to hold out, None if `validation` is a path. Raises DataError for a fraction outside [0, 1)."""
    try:
        share = float(validation)
    except ValueError:
        return None
    if not 0 <= share < 1:
        raise DataError(f"data.validation: {validation} is neither a share of the records (0 to 1) nor a file")
    return share


def _embedded(data: Reading, formats: Formats) -> tuple[Source, list[Sample]]:
    """What the format brings: the source to train on, and the samples that are held out."""
    chosen = formats.chosen
    if chosen is None:
        raise DataError("There is no data: give a file with --data.path, or name a format that brings some.")
    brought = chosen.embedded()
    if brought is None:
        raise DataError(f"Format {chosen.name} brings no data of its own; give a file with --data.path.")
    train, heldout = (
        [Record(fields, f"{chosen.name}: record {number}") for number, fields in enumerate(part, 1)] for part in brought
    )
    digest = hashlib.sha256(json.dumps([[dict(r.fields) for r in part] for part in (train, heldout)]).encode())
    source = Source(chosen, [], digest.hexdigest(), 0)
    source.samples = [sample for sample, _ in interpreted(train[: data.limit], chosen, source)]
    return source, [sample for sample, _ in interpreted(heldout, chosen, Source(chosen, [], "", 0))]
