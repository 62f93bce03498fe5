"""Samples as sequences that fit the model, with a count of what that cost and of what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import TypeVar

from lmflow.data.control_tokens import special_tokens_are_kept
from lmflow.data.findings import Findings
from lmflow.data.lengths import LengthFitter, LengthReport, length_limit, policy_of
from lmflow.data.prefetch import prefetch
from lmflow.data.sample import Sample, TokenSequence
from lmflow.data.template_traits import template_faults
from lmflow.data.token_findings import TextModel, TokenChecker
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

CHUNK = 1024
"""Samples tokenised together."""
Made = TypeVar("Made")
Encoded = tuple[Sample, list[TokenSequence]]
Count = Callable[[str, int, int], None]
"""Told what is counted, how much of it is done, and of how much."""
_COUNT: ContextVar[Count | None] = ContextVar("count", default=None)


@contextmanager
def tokenising_counted(count: Count) -> Iterator[None]:
    """Within the context `count` is told how many samples are tokenised, whoever asked for it."""
    token = _COUNT.set(count)
    try:
        yield
    finally:
        _COUNT.reset(token)


class Tally:
    """Fits the sequences of samples to the length limit, one sample after the other.

    `lmflow data check`, `lmflow plan` and a run count by it, so that they say the same of the same data.
    """

    def __init__(self, model: TextModel, options: DataOptions, findings: Findings | None = None) -> None:
        self.findings = Findings() if findings is None else findings
        self.samples = 0
        self.fitter = LengthFitter(length_limit(model.context_length, options.max_length), options.too_long)
        self._checker = TokenChecker(model, options.train_on)
        if special_tokens_are_kept(model.tokenizer):
            self.findings.changed["control_token"] = "note"
        for fault in template_faults(model.tokenizer):
            self.findings.add("template", "the chat template", fault)

    def add(self, sample: Sample, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
        """What is trained on of a sample, counted; what is wrong with it is among the findings."""
        self.samples += 1
        for kind, detail in self._checker.findings(sample, sequences):
            self.findings.add(kind, sample.source, detail)
        fitted = [each for sequence in sequences for each in self._fit(sequence)]
        if not fitted and not self._is_left_out(sample, sequences):
            self.findings.add("nothing_to_train", sample.source, "no token of it is trained")
        return fitted

    def fitted(self, encoded: Iterable[Encoded]) -> Iterator[TokenSequence]:
        """What is trained on of all samples."""
        for sample, sequences in encoded:
            yield from self.add(sample, sequences)

    def report(self) -> LengthReport:
        """What was done. Raises DataError, naming records, for errors and where nothing is left to train on."""
        self.findings.check()
        return self._counted(self.fitter.report())

    def summary(self) -> LengthReport:
        """What was done, be there errors or not."""
        return self._counted(self.fitter.summary())

    def _counted(self, report: LengthReport) -> LengthReport:
        return replace(report, samples=self.samples, findings=self.findings)

    def _fit(self, sequence: TokenSequence) -> list[TokenSequence]:
        """What is trained on in place of a sequence; one that the policy refuses is an error among the findings."""
        limit, policy = self.fitter.limit, self.fitter.policy
        if limit is None or len(sequence) <= limit:
            return self.fitter.fit(sequence)
        detail = f"{len(sequence):,} tokens, more than {limit:,}"
        if policy == "error":
            self.findings.add("over_length", sequence.source, detail)
            return []
        if policy_of(sequence, policy) != "split":
            self.findings.add("cut_off", sequence.source, detail)
        return self.fitter.fit(sequence)

    def _is_left_out(self, sample: Sample, sequences: Sequence[TokenSequence]) -> bool:
        """Whether a sample gives nothing for a reason that is told otherwise, or that its record gives."""
        answers = [turn for turn in sample.messages if turn.role == "assistant"]
        unwanted = sample.label is False or (answers and not any(turn.is_target for turn in answers))
        refused = self.fitter.policy in ("skip", "error") and any(sequence.num_targets for sequence in sequences)
        return bool(unwanted or refused)


def encode_all(model: TextModel, samples: Sequence[Sample], train_on: str, findings: Findings) -> Iterator[Encoded]:
    """Each sample with its sequences; a chunk of samples is tokenised while what the last one gave is used.

    Samples that cannot be tokenised are left out, and errors among the findings; where not all findings are kept,
    DataError is raised when there are many.
    """
    chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
    count, done = _COUNT.get(), 0
    for chunk in prefetch(partial(each_encoded, partial(model.encode_all, train_on=train_on)), chunks):
        for sample, found in chunk:
            if isinstance(found, DataError):
                findings.add_untokenised(sample.source, found)
            else:
                yield sample, found
        done += len(chunk)
        if count is not None:
            count("samples tokenised", done, len(samples))


def each_encoded(
    encode: Callable[[Sequence[Sample]], Sequence[Made]], chunk: Sequence[Sample]
) -> list[tuple[Sample, Made | DataError]]:
    """The samples with what `encode` makes of them, or with its error: one by one only where there is one.

    Raises an error that names no sample, such as that of a template that is no valid one.
    """
    try:
        return list(zip(chunk, encode(chunk), strict=True))
    except DataError:
        return [(sample, _alone(encode, sample)) for sample in chunk]


def _alone(encode: Callable[[Sequence[Sample]], Sequence[Made]], sample: Sample) -> Made | DataError:
    try:
        return encode([sample])[0]
    except DataError as error:
        if not str(error).startswith(sample.source):
            raise
        return error
