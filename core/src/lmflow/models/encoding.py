"""A run's samples as token sequences that fit the model."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lmflow import data
from lmflow.data import lengths
from lmflow.data.cache.key import key_of
from lmflow.data.cache.token_store import HeldSequences
from lmflow.data.cache.tokens import CacheError, cached
from lmflow.data.lengths import LengthReport
from lmflow.data.sample import Dataset, Item, Message, Sample, TokenSequence
from lmflow.data.tally import CHUNK, Tally, encode_all
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

if TYPE_CHECKING:
    from lmflow.components import Aligner, Log
    from lmflow.models.language_model import LanguageModel

LOOKED_AT = 10_000
"""Samples among which one with images is looked for."""
KEPT_FROM = 2_000_000
"""Characters of text from which on tokens are kept on disk; below, tokenising takes less than a few seconds."""


def encode(
    model: LanguageModel, samples: Sequence[Sample], options: DataOptions, fingerprint: str | None = None
) -> tuple[Sequence[TokenSequence], LengthReport]:
    """Tokenise `samples` and fit them to `options.max_length` or the model's context, whichever is shorter.

    Many samples are tokenised once and kept on disk, found again by everything their tokens depend on: the samples (or
    `fingerprint`, where that stands for them), the tokenizer with its template, and the options.
    Where the disk cannot hold them they are held in memory, and the report says so.
    Raises DataError, naming the first records, after looking at all of them where the tokens of some would spoil the
    run (see `lmflow.data.findings`) or no trained token remains.
    """
    tokens, tally = model.token_key, Tally(model, options)
    sequences = partial(_fitted, model, samples, options.train_on, tally)
    if tokens is None or not worth_keeping(samples):
        return list(sequences()), tally.report()
    what = fingerprint if fingerprint is not None else samples_key(samples)
    limit = str(length_limit(model, options))
    key = key_of(what, tokens, options.train_on, limit, options.too_long, *code(type(model)))
    try:
        stored = cached(key, sequences, lambda: {"lengths": tally.report().as_dict()})
    except CacheError as error:
        tally = Tally(model, options)  # the other has counted some already
        held = HeldSequences(_fitted(model, samples, options.train_on, tally), dict)
        return held, replace(tally.report(), not_kept=str(error))
    return stored, LengthReport.from_dict(stored.about["lengths"])


def _fitted(model: LanguageModel, samples: Sequence[Sample], train_on: str, tally: Tally) -> Iterator[TokenSequence]:
    """The sequences of all samples, fitted to the limit and counted."""
    return tally.fitted(encode_all(model, samples, train_on, tally.findings))


def code(model: type[LanguageModel]) -> tuple[str, ...]:
    """What makes tokens of records, to the letter: what another version of it made is not used."""
    package = Path(data.__file__).parent  # whole, as records become samples and sequences are cut there too
    files = [
        *sorted(package.rglob("*.py")),
        Path(__file__),
        *(Path(inspect.getfile(each)) for each in model.__mro__[:-1]),
    ]
    libraries = [f"{name} {version(name)}" for name in ("transformers", "tokenizers")]
    return (*(file.read_text(encoding="utf-8") for file in files), *libraries)


def worth_keeping(samples: Sequence[Sample]) -> bool:
    """Whether tokenising the samples takes long enough for the result to be kept."""
    some = samples[:CHUNK]
    characters = sum(len(turn.content) for sample in some for turn in sample.messages)
    return characters * len(samples) >= KEPT_FROM * max(1, len(some))


def samples_key(samples: Sequence[Sample]) -> str:
    """A digest of everything that is tokenised of the samples, and of where they are from."""
    parts = ((s.messages, s.templated, s.tools, s.label, s.source) for s in samples)
    return key_of(*map(repr, parts))


def length_limit(model: LanguageModel, options: DataOptions) -> int | None:
    """The longest sequence allowed, in tokens; None if neither the model nor the options limit it."""
    return lengths.length_limit(model.context_length, options.max_length)


def longest_sequence(model: LanguageModel, samples: Sequence[Sample], candidates: int = 8) -> int:
    """Tokens of the longest sample, taken from the few that are longest in characters."""
    longest = heapq.nlargest(candidates, samples, key=lambda sample: sum(len(turn.content) for turn in sample.messages))
    found = model.encode_all([sample if _answered(sample) else _with_answer(sample) for sample in longest])
    return max((len(sequence) for sequences in found for sequence in sequences), default=0)


def encode_answered(model: LanguageModel, samples: Sequence[Sample], options: DataOptions) -> Sequence[TokenSequence]:
    """Like `encode`, for those samples that end with an answer; empty when none does."""
    answered = [sample for sample in samples if _answered(sample)]
    return encode(model, answered, options)[0] if answered else []


def prompts_with_room(
    model: LanguageModel, samples: Sequence[Sample], max_new_tokens: int, options: DataOptions, log: Log, what: str
) -> list[Sample]:
    """Samples whose prompt leaves room for a completion within `length_limit`.

    The others are counted and named in a note, and in the metric `prompts_too_long_WHAT`; `what` says which prompts
    these are ("training", "held-out").
    Raises DataError, naming some, when there are samples and none has room.
    """
    limit = length_limit(model, options)
    if limit is None or not samples:
        return list(samples)
    lengths = [len(model.encode_prompt(sample).ids) for sample in samples]
    kept = [sample for sample, length in zip(samples, lengths, strict=True) if length + max_new_tokens <= limit]
    if len(kept) < len(samples):
        others = [sample for sample, length in zip(samples, lengths, strict=True) if length + max_new_tokens > limit]
        names = ", ".join(sample.source for sample in others[:3])
        text = (
            f"{len(others)} of {len(samples)} {what} prompts leave no room for {max_new_tokens} new tokens within "
            f"{limit} (longest {max(lengths)}): {names}{', …' if len(others) > 3 else ''}"
        )
        if not kept:
            raise DataError(f"{text}. Lower --aligner.max_new_tokens or shorten the prompts.")
        log.note(f"{text}; they are left out")
        log.metrics[f"prompts_too_long_{what.replace('-', '')}"] = len(others)
    return kept


def items_of(aligner: Aligner, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item]:
    """Items of samples as the aligner's objective reads them; by default those that end with an answer, tokenised.

    An error about held-out samples says that they are held out.
    """
    try:
        found = aligner.items(model, samples, data)
        return encode_answered(model, samples, data.options) if found is None else found
    except DataError as error:
        raise (DataError(f"held-out records: {error}") if samples is data.heldout else error) from None


def heldout_items(aligner: Aligner, model: LanguageModel, data: Dataset, log: Log) -> Sequence[Item]:
    """`items_of` what is held out, after saying what its tokens give reason to warn of."""
    found = aligner.items(model, data.heldout, data)
    answered = [sample for sample in data.heldout if _answered(sample)] if found is None else []
    if not answered:
        return found or []
    items, report = encode(model, answered, data.options)
    for line in report.findings.lines("warning"):
        log.note(f"held out, {line}")
    return items


def probe_samples(data: Dataset, count: int = 8) -> list[Sample]:
    """A few training samples to test a model with; a prompt without an answer is given a short one."""
    with_image = [sample for sample in data.train[:LOOKED_AT] if sample.images][:1]  # what is special is among them
    chosen = [*with_image, *data.train[:count]]
    return [sample if _answered(sample) else _with_answer(sample) for sample in chosen]


def _answered(sample: Sample) -> bool:
    return sample.messages[-1].role == "assistant"


def _with_answer(sample: Sample) -> Sample:
    return replace(sample, messages=(*sample.messages, Message("assistant", "Yes, of course.")))
