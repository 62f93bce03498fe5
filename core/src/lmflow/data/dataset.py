"""From a recipe's data section to the samples of a run."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmflow.data.cache.key import key_of
from lmflow.data.cache.record_index import SamplesOnDisk
from lmflow.data.files import is_known, unread_files, unread_folders
from lmflow.data.formats.recognising import Formats
from lmflow.data.formats.unread import listed, told_unread
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.data.source import (
    SHOWN,
    Source,
    _as_share,
    _embedded,
    _skipped,
    read_source,
    read_sources,
    unmet_names,
    validation_place,
    validation_source,
)
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions, Reading


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
    """Fields that the format reads."""
    recognised: bool = False
    """Whether the format was found by looking at the records."""
    unread: tuple[str, ...] = ()
    """Folders in the directory that hold data too, and were not looked into."""
    unread_files: tuple[str, ...] = ()
    """Files of the directory that are of other splits, and what reads them."""
    unread_fields: tuple[str, ...] = ()
    """Fields that say something and that it does not read."""
    unanswered: tuple[str, ...] = ()
    """Held-out records without an answer, where those trained on have one."""
    of: int | None = None
    """How many records there are, where that was counted and only the first were read."""
    unmet: tuple[str, ...] = ()
    """That none of the first records has a field which the options name, where no others were read."""
    validation: str | None = None
    """The file, or the split, that is held out; None for a share."""
    validation_sha256: str | None = None

    def describe(self) -> str:
        """What the user is told: what was read as what, and what was left out."""
        noun = "record" if self.records == 1 and self.of in (None, 1) else "records"
        count = f"{self.records:,}" if self.of in (None, self.records) else f"{self.records:,} of {self.of:,}"
        what = f"embedded {noun}" if self.path is None else f"{noun} of {self.path}"
        how = f", recognised by {listed(self.fields)}" if self.recognised else ""
        rest = f"; {told_unread(self.unread_fields)}" if self.unread_fields else ""
        held = f"{self.heldout:,} {'is' if self.heldout == 1 else 'are'} held out"
        text = f"{count} {what} read as {self.format}{how}{rest}; {self.train:,} train, {held}"
        if self.skipped:
            text += f"\n  {_skipped(self.skipped, self.problems[0])}"
        text += "".join(f"\n  {told}" for told in self.unmet)
        if self.unanswered:
            text += f"\n  {_unanswered(self.unanswered)}"
        text += "".join(f"\n  not read: {files}" for files in self.unread_files)
        if self.unread:
            text += f"\n  not read: {', '.join(f'{name}/' for name in self.unread)}; folders in a folder never are"
        return text


def _unanswered(sources: Sequence[str]) -> str:
    """That held-out records have no answer, and what that means for them."""
    if len(sources) == 1:
        return f"held-out record {sources[0]} has no answer: it is asked, and has no loss"
    return f"{len(sources):,} held-out records have no answer ({listed(sources)}): they are asked, and have no loss"


def load_dataset(data: DataOptions, formats: Formats, seed: int) -> tuple[Dataset, DataSummary]:
    """Read, interpret and split the records `data` describes.

    Raises DataError with the first malformed records, or when there is nothing to train on.
    """
    if data.mix:
        return _load_mix(data, formats, seed)
    validation = None
    if data.path is None:
        source, heldout = _embedded(data, formats)
        train: Sequence[Sample] = source.samples
    else:
        source, validation = read_source(data, formats), validation_source(data, formats)
        train, heldout = split(source.samples, validation, data, seed)
    key = train_key([source], data, seed)
    summary = _summary(data, formats, [source], validation, train, heldout)
    return Dataset(train, heldout, data, source.format, key), summary


def _load_mix(data: DataOptions, formats: Formats, seed: int) -> tuple[Dataset, DataSummary]:
    """Several places, each as often as its weight says; what is held out is not weighted."""
    sources = read_sources(data, formats)
    validation = validation_source(data, formats)
    parts = divided(sources, validation, data, seed)
    whole, heldout = mixed(parts, seed), parts.heldout
    digests = [source.digest for source in sources]
    unknown = next((digest for digest in digests if not is_known(digest)), None)
    digest = unknown or hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    summary = replace(
        _summary(data, formats, sources, validation, whole, heldout), path=", ".join(data.mix), sha256=digest
    )
    return Dataset(whole, heldout, data, sources[0].format, train_key(sources, data, seed)), summary


@dataclass(frozen=True)
class Parts:
    """The samples of several places, as they are split."""

    train: Sequence[tuple[Sequence[Sample], tuple[str, float]]]
    """Those of each place that are trained on, with the place and how often they come in an epoch."""
    heldout: Sequence[Sample]


def divided(sources: Sequence[Source], validation: Source | None, data: DataOptions, seed: int) -> Parts:
    """The samples of all places, split: what is held out is what `validation` holds, or a share of each place."""
    sides = [split(source.samples, validation, data, seed) for source in sources]
    heldout = [sample for _, side in sides for sample in side] if validation is None else list(validation.samples)
    weights = data.mix.items() or [(data.path or "", 1.0)]
    return Parts([(side, weight) for (side, _), weight in zip(sides, weights, strict=True)], heldout)


def brought(data: DataOptions, formats: Formats) -> Parts:
    """The samples that the format brings, where no place is named."""
    source, heldout = _embedded(data, formats)
    return Parts([(source.samples, ("", 1.0))], heldout)


def mixed(parts: Parts, seed: int) -> Sequence[Sample]:
    """What is trained on, each place as often as its weight says."""
    return Concatenated([weighted(samples, weight, f"{seed}/{path}") for samples, (path, weight) in parts.train])


def train_key(sources: Sequence[Source], data: DataOptions, seed: int) -> str | None:
    """A digest of all that the samples trained on depend on: files, options, and each format's options and code.

    None for a format whose code lies in no file, such as a notebook's.
    """
    formats = [source.format for source in sources if source.format is not None]
    own = [f"{each.name} {each.model_dump_json()}" for each in formats]
    kinds = dict.fromkeys(map(type, formats))
    try:
        code = [f"{each.__qualname__} {Path(inspect.getfile(each)).read_text(encoding='utf-8')}" for each in kinds]
    except (OSError, TypeError):
        return None
    plain = data.model_dump_json(exclude={"streaming"})
    return key_of(*(source.digest for source in sources), plain, str(seed), *own, *code)


def names_of(sources: Sequence[Source]) -> str:
    """The formats of the sources by name, each once."""
    return ", ".join(dict.fromkeys(source.format.name for source in sources if source.format is not None))


def _summary(
    data: DataOptions,
    formats: Formats,
    sources: Sequence[Source],
    validation: Source | None,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
) -> DataSummary:
    everything = [*sources, *([validation] if validation else [])]
    unmet = unmet_names(everything, data)
    return DataSummary(
        path=data.path,
        format=names_of(sources),
        records=sum(source.records for source in sources),
        train=len(train),
        heldout=len(heldout),
        sha256=sources[0].digest,
        validation=str(data.validation) if validation else None,
        validation_sha256=validation.digest if validation else None,
        skipped=sum(source.skipped for source in everything),
        problems=tuple(problem for source in everything for problem in source.problems)[:SHOWN],
        fields=sources[0].fields,
        unread_fields=tuple(dict.fromkeys(field for source in sources for field in source.unread)),
        recognised=formats.chosen is None and len({type(source.format) for source in sources}) == 1,
        unmet=tuple(unmet),
        unanswered=tuple(each.source for each in heldout if not _answered(each)) if _answered(*train[:1]) else (),
        unread_files=left_in(data),
        unread=tuple(name for path in data.mix or [data.path] if path for name in unread_folders(path)),
    )


def left_in(data: DataOptions) -> tuple[str, ...]:
    """Files of other splits in the directories that are read, and what reads them."""
    held = validation_place(data)
    paths = [path for path in data.mix or [data.path] if path is not None]
    read = {path: [data.split, *([held.split] if held and held.path == path else [])] for path in paths}
    return tuple(told for path in paths if (told := unread_files(path, read[path])))


def _answered(sample: Sample | None = None) -> bool:
    """Whether a sample ends with an answer, wanted or not."""
    return sample is not None and (sample.messages[-1].role == "assistant" or sample.label is not None)


def read_samples(data: Reading, formats: Formats, note: Callable[[str], None] | None = None) -> Sequence[Sample]:
    """Every record `data` describes, none held out; without a path, the held-out part of what the format brings.

    `note` is told of records that `data.on_bad_record` says to skip. Raises DataError with the first malformed records.
    """
    if data.path is None and not data.mix:
        return _embedded(data, formats)[1][: data.limit]
    sources = read_sources(data, formats)
    for told in unmet_names(sources, data):
        if note is not None:
            note(told)
    if note is not None and (skipped := sum(source.skipped for source in sources)):
        note(_skipped(skipped, next(source.problems[0] for source in sources if source.problems)))
    return sources[0].samples if len(sources) == 1 else Concatenated([source.samples for source in sources])


def split(
    samples: Sequence[Sample], validation: Source | None, data: DataOptions, seed: int
) -> tuple[Sequence[Sample], list[Sample]]:
    """Training and held-out samples: those of the source `validation`, or a seeded share."""
    if validation is not None:
        return samples, list(validation.samples)
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
