"""What is wrong with a data set, found by reading all of it: records, dialogues, tokens, and what two parts share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from lmflow.data.dataset import Concatenated, brought, divided, left_in, mixed, names_of
from lmflow.data.findings import KINDS, SOURCE, Finding, Findings
from lmflow.data.lengths import LengthReport
from lmflow.data.sample import Sample
from lmflow.data.sample_findings import find_in_samples
from lmflow.data.source import Source, places, scan_source, unmet_names, validation_source
from lmflow.data.tally import Tally, encode_all
from lmflow.data.token_findings import TextModel

if TYPE_CHECKING:
    from lmflow.data.formats.recognising import Formats
    from lmflow.recipe.sections.data import DataOptions

BINS = 10


@dataclass
class CheckReport:
    """Everything found in a data set."""

    path: str | None = None
    format: str = ""
    """What the records mean; "" where none of them could be used to recognise it."""
    records: int = 0
    samples: int = 0
    validation: int = 0
    """How many of them are held out."""
    unread: tuple[str, ...] = ()
    """Fields that say something and that the format does not read."""
    unread_files: tuple[str, ...] = ()
    """Files of the directory that are of other splits, and what reads them."""
    unmet: tuple[str, ...] = ()
    """That none of the first records has a field which the options name, where no others were read."""
    findings: Findings = field(default_factory=lambda: Findings(kept=None))
    turns: Counter[str] = field(default_factory=Counter)
    lengths: LengthReport | None = None
    """What a run would say of the tokens that it trains on; None where no model was given to count with."""
    tokens_of_each: list[int] = field(default_factory=list)
    """Tokens of each sequence, whatever the limit."""
    reasons: list[str] = field(default_factory=list)
    """Errors that lie in no record: that there is nothing to train on."""

    @property
    def errors(self) -> list[str]:
        """What would stop a run, in words; empty if nothing would."""
        return [*self._described("error"), *self.reasons]

    @property
    def warnings(self) -> list[str]:
        """What a run would warn of, in words."""
        return list(self._described("warning"))

    def _described(self, severity: Any) -> Iterator[str]:
        return (KINDS[kind].counted(count) for kind, count in self.findings.of(severity).items())

    def histogram(self) -> list[tuple[int, int, int]]:
        """Shortest, longest and count of each bin of lengths, in tokens; bins are equally wide."""
        if not self.tokens_of_each:
            return []
        low, high = min(self.tokens_of_each), max(self.tokens_of_each)
        width = max(1, -(-(high - low + 1) // BINS))
        counts = Counter((length - low) // width for length in self.tokens_of_each)
        return [(low + b * width, low + (b + 1) * width - 1, counts[b]) for b in range(max(counts) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        lengths = self.lengths.as_dict() if self.lengths else {}
        return {
            "path": self.path,
            "format": self.format,
            "unread": list(self.unread),
            "unread_files": list(self.unread_files),
            "unmet": list(self.unmet),
            "records": self.records,
            "samples": self.samples,
            "validation": self.validation,
            "turns": dict(self.turns),
            "tokens": lengths.get("tokens"),
            "num_targets": lengths.get("num_targets"),
            "histogram": [{"from": low, "to": high, "samples": count} for low, high, count in self.histogram()],
            "lengths": {name: value for name, value in lengths.items() if name != "findings"},
            "counts": self.findings.counts,
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": [self._as_dict(finding) for finding in self.findings.examples],
        }

    def _as_dict(self, finding: Finding) -> dict[str, Any]:
        return {"severity": self.findings.severity(finding.kind), **finding.as_dict()}


def check_data(data: DataOptions, formats: Formats, model: TextModel | None) -> CheckReport:
    """Read everything that `data` names, the validation file too, and report what is wrong with it.

    Raises DataError where a file as a whole, or its format, cannot be read, or the model's template is broken.
    """
    read = partial(scan_source, shown=None)
    sources = [read(place, formats, folder) for place, folder in places(data)]
    held = None if data.path is None and not data.mix else validation_source(data, formats, read)
    unmet = unmet_names([*sources, held], data)
    report = CheckReport(path=data.path or ", ".join(data.mix) or None, format=names_of(sources))
    report.records = sum(source.records for source in sources)
    report.unmet, report.unread_files = tuple(unmet), left_in(data)
    report.unread = tuple(dict.fromkeys(name for source in sources for name in source.unread))
    _note_problems(report.findings, [*sources, *([held] if held else [])], data)
    parts = brought(data, formats) if data.path is None and not data.mix else divided(sources, held, data, 0)
    train, heldout = Concatenated([part for part, _ in parts.train]), parts.heldout
    report.samples, report.validation = len(train) + len(heldout), len(heldout)
    for sample in chain(train, heldout):
        report.turns.update(turn.role for turn in sample.messages)
    find_in_samples(train, heldout, report.findings)
    if not report.samples:
        report.reasons.append("no sample at all")
    elif model is not None:
        _check_tokens(report, model, data, train, heldout, mixed(parts, 0) if data.mix else None)
    return report


def _note_problems(findings: Findings, sources: Sequence[Source], data: DataOptions) -> None:
    """Records that cannot be used, by the messages of their errors: no error where they are to be skipped."""
    if data.on_bad_record == "skip":
        findings.changed["bad_record"] = "warning"
    for problem in (problem for source in sources for problem in source.problems):
        at = SOURCE.match(problem)
        place = at.group() if at else problem.partition(": ")[0]
        findings.add("bad_record", place, problem.removeprefix(place).removeprefix(": "))


def _check_tokens(
    report: CheckReport,
    model: TextModel,
    data: DataOptions,
    train: Sequence[Sample],
    heldout: Sequence[Sample],
    weighted: Sequence[Sample] | None,
) -> None:
    """Tokenise all samples; of a mix, those that are trained on once more, each as often as a run would."""
    findings = report.findings
    tally = Tally(model, data, findings)
    for part, counted in ((train, tally), (heldout, Tally(model, data, findings))):
        for sample, sequences in encode_all(model, part, data.train_on, findings):
            report.tokens_of_each += map(len, sequences)
            counted.add(sample, sequences)
    if weighted is not None:
        tally = Tally(model, data, findings)
        for sample, sequences in encode_all(model, weighted, data.train_on, findings):
            tally.add(sample, sequences)
    report.lengths = tally.summary()
    asks_only = not any(
        sample.label is not None or any(turn.role == "assistant" for turn in sample.messages) for sample in train
    )
    if not (report.lengths.kept or findings.of("error") or asks_only):
        report.reasons.append(tally.fitter.nothing_to_train())
