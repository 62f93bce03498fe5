"""Preference samples as pairs of token sequences, chosen and rejected, that follow the run's rules of length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from lmflow.data.findings import Findings
from lmflow.data.lengths import LengthFitter, LengthReport
from lmflow.data.prefetch import prefetch
from lmflow.data.sample import Sample, TokenSequence
from lmflow.data.tally import CHUNK, each_encoded
from lmflow.data.token_findings import TokenChecker
from lmflow.errors import DataError
from lmflow.models.encoding import length_limit
from lmflow.recipe.sections.data import DataOptions

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

Pair = tuple[TokenSequence, TokenSequence]
"""The chosen and the rejected answer to one prompt, each with the prompt before it."""


def encode_pairs(
    model: LanguageModel, samples: Sequence[Sample], options: DataOptions
) -> tuple[list[Pair], LengthReport]:
    """Tokenise preferences (`messages` preferred to `rejected`) and fit both sides to the run's rules of length.

    The targets are the tokens of the answers in which the two dialogues differ: what comes before is their common
    prompt, found by comparing tokens, and has no loss. An answer counts from its first token, also where both begin
    with the same words. `objective_inputs` of both have the record's "margin", where it has one.

    `options.too_long` acts on a pair as a whole: "error" names it, "skip" leaves it out, "truncate" and "auto" cut each
    side at its end, and a pair of which a side keeps no target, or both sides are then equal, is left out and named.
    The report counts sequences, two for each pair.
    Raises DataError, naming the record, for a sample without a rejected dialogue, a margin that is no number, a pair
    too long under "error" or "split" (an answer cannot be compared in pieces), and when no pair is left.
    """
    if options.train_on == "all":
        raise DataError("data.train_on all: a comparison has its loss on the answers; use assistant or last")
    fitter, findings = LengthFitter(length_limit(model, options), options.too_long), Findings()
    found = _encoded(model, samples, options.train_on, findings)
    pairs = [fitted for pair in found if (fitted := _fitted(fitter, pair, findings)) is not None]
    findings.check()
    return pairs, replace(fitter.report(), samples=len(samples), findings=findings)


def encode_answered_pairs(model: LanguageModel, samples: Sequence[Sample], options: DataOptions) -> list[Pair]:
    """Like `encode_pairs`, for those samples that have a rejected dialogue; empty when none has."""
    preferences = [sample for sample in samples if sample.rejected]
    return encode_pairs(model, preferences, options)[0] if preferences else []


Sides = tuple[list[TokenSequence], list[TokenSequence]]
"""The sequences of a preference's two dialogues."""


def _encoded(model: LanguageModel, samples: Sequence[Sample], train_on: str, findings: Findings) -> Iterator[Pair]:
    """The pairs of all samples, whatever their length; a chunk is tokenised while the last one is used.

    What is wrong with samples is among the findings; those that cannot be tokenised are left out.
    """
    chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
    checker = TokenChecker(model, train_on)
    for chunk in prefetch(partial(each_encoded, partial(_sides, model, train_on)), chunks):
        for sample, sides in chunk:
            if isinstance(sides, DataError):
                findings.add_untokenised(sample.source, sides)
                continue
            for side, sequences in zip(_dialogues(sample), sides, strict=True):
                for kind, detail in checker.findings(side, sequences):
                    findings.add(kind, sample.source, detail)
            # A template that rewrites earlier turns gives several sequences; the last one has the last answer.
            yield _compared(sides[0][-1], sides[1][-1], sample)


def _sides(model: LanguageModel, train_on: str, some: Sequence[Sample]) -> list[Sides]:
    """The two sides of each preference, all tokenised together."""
    for sample in some:
        _check_preference(sample)
    both = [side for sample in some for side in _dialogues(sample)]
    found = model.encode_all(both, train_on)
    return list(zip(found[::2], found[1::2], strict=True))


def _dialogues(sample: Sample) -> tuple[Sample, Sample]:
    """The preferred dialogue of a preference, and the other one."""
    return sample, replace(sample, messages=sample.rejected, rejected=())


def _fitted(fitter: LengthFitter, pair: Pair, findings: Findings) -> Pair | None:
    """The pair within the limit; None for one that is left out, or too long. What that costs is among the findings."""
    limit, source = fitter.limit, pair[0].source
    lengths = [len(each) for each in pair if limit is not None and len(each) > limit]
    try:
        fitted = fitter.fit_pair(pair)
    except DataError as error:
        findings.add("over_length", source, str(error).removeprefix(f"{source}: "))
        return None
    if lengths:
        findings.add("cut_off", source, f"{max(lengths):,} tokens, more than {limit:,}")
    if fitted is None and not (lengths and fitter.policy == "skip"):
        findings.add("nothing_to_train", source, "its answers have no trained token in which they differ")
    return fitted


def _compared(chosen: TokenSequence, rejected: TokenSequence, sample: Sample) -> Pair:
    """The two sequences, with their targets behind the common prompt."""
    begin = common_prompt(chosen, rejected)
    inputs = {"margin": _margin(sample)} if sample.record.get("margin") is not None else {}
    first, second = (_without_targets(each, begin, inputs) for each in (chosen, rejected))
    return first, second


def common_prompt(chosen: TokenSequence, rejected: TokenSequence) -> int:
    """Number of tokens that are the prompt of both: those before the answers in which the first difference lies."""
    same = sum(
        1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen.ids, rejected.ids, strict=False))
    )  # two answers with the same first words differ within a run of targets, which begins earlier
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    while same > 0 and chosen.loss_mask[same] and chosen.loss_mask[same - 1]:
        same -= 1
    return same


def _without_targets(sequence: TokenSequence, until: int, inputs: dict[str, Any]) -> TokenSequence:
    mask = [index >= until and is_target for index, is_target in enumerate(sequence.loss_mask)]
    return replace(sequence, loss_mask=mask, objective_inputs={**sequence.objective_inputs, **inputs})


def _check_preference(sample: Sample) -> None:
    if not sample.rejected:
        raise DataError(f"{sample.source}: it has no rejected answer, which a comparison needs")
    if sample.messages[-1].role != "assistant" or sample.rejected[-1].role != "assistant":
        raise DataError(f"{sample.source}: both dialogues must end with an answer of the assistant to be compared")


def _margin(sample: Sample) -> float:
    try:
        return float(sample.record["margin"])
    except (TypeError, ValueError):
        raise DataError(f"{sample.source}: margin: expected a number, found {sample.record['margin']!r}") from None
