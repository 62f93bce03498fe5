"""What can be wrong with a data set: the kinds of findings, how bad each is, and how they are counted and told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmflow.errors import DataError

Severity = Literal["error", "warning", "note"]
"""An error stops a run, a warning is printed by it, a note is told by `lmflow data check` alone."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: how bad it is, and what one of them, and several, are called."""

    severity: Severity
    one: str
    many: str

    def counted(self, count: int) -> str:
        """So many of them, in words."""
        return f"1 {self.one}" if count == 1 else f"{count:,} {self.many}"


KINDS: Mapping[str, Kind] = {
    "bad_record": Kind("error", "record that cannot be used", "records that cannot be used"),
    "cannot_be_tokenised": Kind(
        "error", "sample that the model cannot be given", "samples that the model cannot be given"
    ),
    "over_length": Kind(
        "error",
        "sequence longer than the limit, which --data.too_long error refuses",
        "sequences longer than the limit, which --data.too_long error refuses",
    ),
    "end_not_trained": Kind(
        "error", "answer whose end the model would not learn", "answers whose end the model would not learn"
    ),
    "leak": Kind("warning", "held-out sample that is also trained on", "held-out samples that are also trained on"),
    "template": Kind("warning", "fault of the chat template", "faults of the chat template"),
    "control_token": Kind(
        "warning", "text that contains a special token of the model", "texts that contain special tokens of the model"
    ),
    "thought_not_asked_for": Kind(
        "warning",
        "thought that is learnt but never asked for, in front of the template's prompt",
        "thoughts that are learnt but never asked for, in front of the template's prompt",
    ),
    "empty_turn": Kind("warning", "turn without text", "turns without text"),
    "role_order": Kind(
        "warning", "dialogue whose turns are in an odd order", "dialogues whose turns are in an odd order"
    ),
    "earlier_end_not_trained": Kind(
        "warning",
        "earlier answer of a dialogue whose end the model would not learn",
        "earlier answers of dialogues whose end the model would not learn",
    ),
    "cut_off": Kind(
        "warning", "sequence cut off or skipped at the length limit", "sequences cut off or skipped at the length limit"
    ),
    "nothing_to_train": Kind("warning", "sample without a trained token", "samples without a trained token"),
    "same_answers": Kind(
        "warning", "preference between an answer and itself", "preferences between an answer and itself"
    ),
    "other_prompt": Kind(
        "warning",
        "preference between answers to different prompts",
        "preferences between answers to different prompts",
    ),
    "inner_thought": Kind(
        "warning",
        "thought that stands behind other text, and is text of its answer",
        "thoughts that stand behind other text, and are text of their answers",
    ),
    "duplicate": Kind("note", "sample that occurs before", "samples that occur before"),
    "shared_prompt": Kind(
        "note", "held-out sample whose prompt is also trained on", "held-out samples whose prompt is also trained on"
    ),
    "unanswered": Kind("note", "dialogue whose last turn nothing answers", "dialogues whose last turn nothing answers"),
}
"""Each kind of finding, the worst first."""

ADVICE: Mapping[str, str] = {
    "over_length": "Raise --data.max_length, or set --data.too_long truncate, skip or split.",
    "end_not_trained": "Choose a template that ends each answer with an end token with --data.template.",
}
"""What helps against errors whose details do not say it."""
EXAMPLES = 5
"""Findings of each kind that a run keeps, and errors that its message lists."""
ENOUGH = 1000
"""Samples that cannot be tokenised, after which a run looks at no more."""
SOURCE = re.compile(r"(?P<file>.+?)(?::(?P<line>\d+)|: (?:record|instance|row) (?P<record>\d+))")
"""Where a record stands: a line of a file, or the record of that number in it."""
FIELD = re.compile(r"[\w.\[\]-]+(?=: )")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong, and where."""

    kind: str
    source: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data; file, line or number of the record, and field stand apart where they are known."""
        at = SOURCE.match(self.source)
        named = FIELD.match(self.detail) if self.kind == "bad_record" else None
        return {
            "kind": self.kind,
            "source": self.source,
            "file": at["file"] if at else self.source,
            "line": int(at["line"]) if at and at["line"] else None,
            "record": int(at["record"]) if at and at["record"] else None,
            "field": named.group() if named else None,
            "detail": self.detail,
        }


@dataclass
class Findings:
    """Findings counted by kind, and the first of each kind themselves."""

    kept: int | None = EXAMPLES
    """How many of each kind are kept; None for all."""
    found: Counter[str] = field(default_factory=Counter)
    examples: list[Finding] = field(default_factory=list)
    changed: dict[str, Severity] = field(default_factory=dict)
    """Kinds that are not as bad, or worse, in this data set than KINDS says."""
    _seen: set[int] = field(default_factory=set, repr=False, compare=False)

    def add(self, kind: str, source: str, detail: str) -> None:
        """Count a finding, once where a sample is looked at several times, as those that a mix repeats are."""
        same = hash((kind, source, detail))
        if source and same in self._seen:
            return
        self._seen.add(same)
        self.found[kind] += 1
        if self.kept is None or self.found[kind] <= self.kept:
            self.examples.append(Finding(kind, source, detail))

    def add_untokenised(self, source: str, error: DataError) -> None:
        """Count a sample that cannot be tokenised. Raises DataError after many, where not all findings are kept."""
        self.add("cannot_be_tokenised", source, str(error).removeprefix(f"{source}: "))
        if self.kept is not None and self.found["cannot_be_tokenised"] >= ENOUGH:
            self.check(more=True)

    def severity(self, kind: str) -> Severity:
        """How bad a kind of finding is in this data set."""
        return self.changed.get(kind, KINDS[kind].severity)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each kind there are, the worst first; only those there are."""
        order: tuple[Severity, ...] = ("error", "warning", "note")
        kinds = sorted((kind for kind in KINDS if self.found[kind]), key=lambda kind: order.index(self.severity(kind)))
        return {kind: self.found[kind] for kind in kinds}

    def of(self, severity: Severity) -> dict[str, int]:
        """`counts` of the kinds that are so bad."""
        return {kind: count for kind, count in self.counts.items() if self.severity(kind) == severity}

    def examples_of(self, kind: str) -> list[Finding]:
        """The findings of a kind that were kept."""
        return [finding for finding in self.examples if finding.kind == kind]

    def lines(self, severity: Severity) -> Iterator[str]:
        """A line for each kind that is so bad: how many there are, and one of them."""
        for kind, count in self.of(severity).items():
            first = self.examples_of(kind)[0]
            such = ": " if count == 1 else ", such as "
            yield f"{severity}: {KINDS[kind].counted(count)}{such}{first.source}: {first.detail}"

    def check(self, *, more: bool = False) -> None:
        """Raise DataError with the first errors, where there are any; `more` says that not all samples were read."""
        errors = self.of("error")
        if not errors:
            return
        count = sum(errors.values())
        shown = [finding for kind in errors for finding in self.examples_of(kind)][:EXAMPLES]
        words = "; ".join(KINDS[kind].counted(number) for kind, number in errors.items())
        lines = [f"The data cannot be trained on as it is: {'at least ' if more else ''}{words}."]
        lines += [f"  {finding.source}: {finding.detail}" for finding in shown]
        lines += [f"  … and {count - len(shown):,} more"] if count > len(shown) else []
        lines += [ADVICE[kind] for kind in errors if kind in ADVICE]
        raise DataError("\n".join([*lines, "lmflow data check, with the same options, lists all findings."]))

    def as_dict(self) -> dict[str, Any]:
        """Counts and examples as plain data, by kind."""
        return {
            kind: {
                "severity": self.severity(kind),
                "count": count,
                "examples": [[each.source, each.detail] for each in self.examples_of(kind)],
            }
            for kind, count in self.counts.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Findings:
        """The findings that `as_dict` wrote."""
        made = cls()
        for kind, each in values.items():
            made.found[kind] = each["count"]
            made.examples += [Finding(kind, source, detail) for source, detail in each["examples"]]
            if each["severity"] != KINDS[kind].severity:
                made.changed[kind] = each["severity"]
        return made
