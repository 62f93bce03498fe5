"""A run's samples as token sequences that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lmflow.components import DataFormat
from lmflow.data.lengths import LengthReport, fit_lengths
from lmflow.data.sample import Dataset, Message, Sample, TokenSequence

if TYPE_CHECKING:
    from lmflow.models import LanguageModel


def encode(
    model: LanguageModel, samples: Sequence[Sample], options: DataFormat
) -> tuple[list[TokenSequence], LengthReport]:
    """Tokenise `samples` and fit them to `options.max_length` or the model's context, whichever is shorter.

    Raises DataError when no trained token remains, naming the records.
    """
    sequences = [each for sample in samples for each in model.encode(sample, options.train_on)]
    return fit_lengths(sequences, length_limit(model, options), options.too_long)


def length_limit(model: LanguageModel, options: DataFormat) -> int | None:
    """The longest sequence allowed, in tokens; None if neither the model nor the options limit it."""
    limits = [limit for limit in (options.max_length, model.context_length) if limit is not None]
    return min(limits, default=None)


def longest_sequence(model: LanguageModel, samples: Sequence[Sample], candidates: int = 8) -> int:
    """Tokens of the longest sample, taken from the few that are longest in characters."""
    longest = sorted(samples, key=lambda sample: -sum(len(turn.content) for turn in sample.messages))[:candidates]
    encoded = [model.encode(sample if _answered(sample) else _with_answer(sample)) for sample in longest]
    return max((len(sequence) for sequences in encoded for sequence in sequences), default=0)


def encode_answered(model: LanguageModel, samples: Sequence[Sample], options: DataFormat) -> list[TokenSequence]:
    """Like `encode`, for those samples that end with an answer; empty when none does."""
    answered = [sample for sample in samples if _answered(sample)]
    return encode(model, answered, options)[0] if answered else []


def probe_sequences(model: LanguageModel, data: Dataset, count: int = 8) -> list[TokenSequence]:
    """A few training sequences to test a model with; a prompt without an answer is given a short one."""
    pictured = [sample for sample in data.train if sample.images][:1]  # what is special must be among them
    chosen = [*pictured, *data.train[:count]]
    samples = [sample if _answered(sample) else _with_answer(sample) for sample in chosen]
    return encode(model, samples, data.options)[0]


def _answered(sample: Sample) -> bool:
    return sample.messages[-1].role == "assistant"


def _with_answer(sample: Sample) -> Sample:
    return replace(sample, messages=(*sample.messages, Message("assistant", "Yes, of course.")))
