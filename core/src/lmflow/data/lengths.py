"""Fitting token sequences to a length, and saying what that cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmflow.data.findings import Findings
from lmflow.data.sample import TokenSequence
from lmflow.errors import DataError
from lmflow.formatting import counted

NAMED = 5
"""How many records a message names."""

RULES = {
    "whole": "kept whole",
    "truncated": "cut at the end",
    "split": "split into pieces",
    "skipped": "skipped: too long",
    "untrained": "skipped: nothing to train on",
}
"""What may become of a sequence, in the words the user is shown."""
WIDEST = max(map(len, RULES.values()))


@dataclass(frozen=True)
class LengthReport:
    """What became of the sequences: how many of them, and how many tokens, each rule touched."""

    limit: int | None
    longest: int
    kept: int
    """Sequences that are trained on; a split one counts as its pieces."""
    tokens: int
    num_targets: int
    sequences: Mapping[str, int]
    """How many sequences each of RULES touched; those it did not are not named."""
    lost_tokens: Mapping[str, int]
    """Tokens that each rule left out of training."""
    untrained: tuple[str, ...]
    """The first few records that have nothing to train on."""
    samples: int | None = None
    """Samples that they were made of; None where that is not known."""
    findings: Findings = field(default_factory=Findings)
    """What is wrong with their tokens."""
    not_kept: str | None = None
    """Why the tokens were not kept for the next run, where they were to be."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LengthReport:
        """The report that `as_dict` wrote."""
        rules = values["rules"]
        return cls(
            limit=values["limit"],
            longest=values["longest"],
            kept=values["kept"],
            tokens=values["tokens"],
            num_targets=values["num_targets"],
            sequences={rule: rules[rule]["sequences"] for rule in RULES if rules[rule]["sequences"]},
            lost_tokens={rule: rules[rule]["tokens_lost"] for rule in RULES if rules[rule]["tokens_lost"]},
            untrained=tuple(values["untrained"]),
            samples=values["samples"],
            findings=Findings.from_dict(values["findings"]),
        )

    def describe(self) -> str:
        """What the user is told: a line of totals, the `table`, and the warnings."""
        warnings = list(self.findings.lines("warning"))
        if self.not_kept is not None:
            warnings.append(f"tokens are held in memory, and made anew by the next run: {self.not_kept}")
        return "\n".join(["\n  ".join([self.totals(), *self.table()]), *warnings])

    def totals(self) -> str:
        """How many samples, sequences and tokens there are, and how many tokens are trained."""
        samples = "" if self.samples is None else f"{counted(self.samples, 'sample')}, "
        share = self.num_targets / max(1, self.tokens)
        trained = f"{self.num_targets:,} of them trained ({share:.0%})"
        return f"{samples}{counted(self.kept, 'sequence')}, {counted(self.tokens, 'token')}, {trained}"

    def table(self) -> list[str]:
        """How many sequences each rule touched, and tokens it cost: a line each, none where all were kept whole."""
        if self.sequences.keys() <= {"whole"}:
            return []
        limit = "" if self.limit is None else f" with a limit of {self.limit:,} tokens"
        rows = [f"of {sum(self.sequences.values()):,}{limit} (the longest has {self.longest:,}):"]
        width, lost_width = (
            max(len(f"{count:,}") for count in (0, *counts.values())) for counts in (self.sequences, self.lost_tokens)
        )
        for rule in RULES:
            if count := self.sequences.get(rule):
                row = f"  {count:>{width},}  {RULES[rule]}"
                if rule != "whole":
                    lost = f"{self.lost_tokens.get(rule, 0):>{lost_width},}"
                    row = f"{row:<{WIDEST + width + 4}}  {lost} tokens lost{self._named(rule)}"
                rows.append(row)
        return rows

    def _named(self, rule: str) -> str:
        if rule != "untrained":
            return ""
        return f" ({', '.join(self.untrained)}{', …' if self.sequences[rule] > len(self.untrained) else ''})"

    def as_dict(self) -> dict[str, Any]:
        """The report for run.json."""
        rules = {
            rule: {"sequences": self.sequences.get(rule, 0), "tokens_lost": self.lost_tokens.get(rule, 0)}
            for rule in RULES
        }
        return {
            "limit": self.limit,
            "longest": self.longest,
            "kept": self.kept,
            "tokens": self.tokens,
            "num_targets": self.num_targets,
            "rules": rules,
            "untrained": list(self.untrained),
            "samples": self.samples,
            "findings": self.findings.as_dict(),
        }


@dataclass
class LengthFitter:
    """Fits sequences one after the other, counting what it does to them."""

    limit: int | None
    policy: str
    """auto, error, truncate, skip or split, as `DataOptions.too_long` says."""
    longest: int = 0
    kept: int = 0
    tokens: int = 0
    num_targets: int = 0
    sequences: Counter[str] = field(default_factory=Counter)
    lost_tokens: Counter[str] = field(default_factory=Counter)
    untrained: list[str] = field(default_factory=list)

    def fit(self, sequence: TokenSequence) -> list[TokenSequence]:
        """What is trained on in place of `sequence`: sequences of at most `limit` tokens, each with a target.

        Raises DataError for one that is too long under the policy "error".
        """
        rule, fitted = self._fitted(sequence)
        useful = [each for each in fitted if each.num_targets]
        if fitted and not useful:
            rule = "untrained"
            self._name(sequence)
        self._count(rule, sequence, fitted, useful)
        return useful

    def fit_pair(self, pair: tuple[TokenSequence, TokenSequence]) -> tuple[TokenSequence, TokenSequence] | None:
        """The two sequences within the limit; None where they cannot be compared any more, which leaves out both.

        That is where one of them is skipped or keeps no target, and where they have become equal.
        Raises DataError for one that is too long under the policies "error" and "split".
        """
        if self.policy == "split" and self.limit is not None and max(map(len, pair)) > self.limit:
            raise DataError(
                f"{pair[0].source}: {max(map(len, pair))} tokens, more than {self.limit}, and an answer cannot be "
                "compared in pieces. Raise --data.max_length, or set --data.too_long truncate or skip."
            )
        # Of a pair with a rejected answer of plain text, too, each side is cut rather than split.
        rules, fitted = zip(*(self._fitted(each, "truncate") for each in pair), strict=True)
        if "skipped" in rules:
            rules = ("skipped", "skipped")
        elif not all(each.num_targets for [each] in fitted) or fitted[0][0].ids == fitted[1][0].ids:
            rules = ("untrained", "untrained")
            self._name(pair[0])
        is_kept = rules[0] not in ("skipped", "untrained")
        for rule, each, some in zip(rules, pair, fitted, strict=True):
            self._count(rule, each, some, some if is_kept else [])
        return (fitted[0][0], fitted[1][0]) if is_kept else None

    def _name(self, sequence: TokenSequence) -> None:
        self.untrained += [sequence.source] if len(self.untrained) < NAMED else []

    def _count(
        self, rule: str, sequence: TokenSequence, fitted: Sequence[TokenSequence], kept: Sequence[TokenSequence]
    ) -> None:
        self.longest = max(self.longest, len(sequence))
        self.sequences[rule] += 1
        self.lost_tokens[rule] += _lost(sequence, fitted, kept)
        self.kept += len(kept)
        self.tokens += sum(len(each) for each in kept)
        self.num_targets += sum(each.num_targets for each in kept)

    def _fitted(self, sequence: TokenSequence, auto: str | None = None) -> tuple[str, list[TokenSequence]]:
        """What becomes of a sequence, and what is left of it; `auto` is what the policy of that name means for it."""
        if self.limit is None or len(sequence) <= self.limit:
            return "whole", [sequence]
        policy = self.policy
        if policy == "auto":
            policy = auto or policy_of(sequence, policy)
        if policy == "error":
            raise DataError(
                f"{sequence.source}: {len(sequence)} tokens, more than {self.limit}. Raise --data.max_length, or set "
                "--data.too_long truncate, skip or split."
            )
        if policy == "skip":
            return "skipped", []
        if policy == "split":
            return "split", list(pieces(sequence, self.limit))
        return "truncated", [sequence.cut(0, self.limit)]

    def report(self) -> LengthReport:
        """What was done so far. Raises DataError, naming records, when nothing is left to train on."""
        if not self.kept:
            raise DataError(self.nothing_to_train())
        return self.summary()

    def summary(self) -> LengthReport:
        """What was done so far, be there something to train on or not."""
        return LengthReport(
            limit=self.limit,
            longest=self.longest,
            kept=self.kept,
            tokens=self.tokens,
            num_targets=self.num_targets,
            sequences={rule: self.sequences[rule] for rule in RULES if self.sequences[rule]},
            lost_tokens={rule: self.lost_tokens[rule] for rule in RULES if self.lost_tokens[rule]},
            untrained=tuple(self.untrained),
        )

    def nothing_to_train(self) -> str:
        """Why no token would be trained."""
        total = sum(self.sequences.values())
        if not total:
            return "There is no sample to train on. Look at the data with lmflow data check."
        if self.sequences["skipped"] == total:
            all_of_them = "The one sample is" if total == 1 else f"All {total:,} samples are"
            return f"{all_of_them} longer than {self.limit} tokens (longest {self.longest}). Raise --data.max_length."
        what = "the one sample" if total == 1 else f"any of {total:,} samples"
        return (
            f"No token would be trained in {what} ({', '.join(self.untrained)}). Training needs answers: an assistant "
            f"turn that is to be learnt, not labelled as bad, and not cut off by --data.max_length ({self.limit})."
        )


def fit_lengths(
    sequences: Iterable[TokenSequence], limit: int | None, policy: str
) -> tuple[list[TokenSequence], LengthReport]:
    """Sequences of at most `limit` tokens, each with at least one target, and the report on it.

    Raises DataError for a longer one under the policy "error", and when no target remains.
    """
    fitter = LengthFitter(limit, policy)
    fitted = [each for sequence in sequences for each in fitter.fit(sequence)]
    return fitted, fitter.report()


def policy_of(sequence: TokenSequence, policy: str) -> str:
    """What a policy means for a sequence: "auto" splits plain text and truncates everything else."""
    if policy != "auto":
        return policy
    return "split" if is_plain_text(sequence) else "truncate"


def is_plain_text(sequence: TokenSequence) -> bool:
    """Whether every token is a target, so that a cut loses no question its answer depends on."""
    return not sequence.model_inputs and all(sequence.loss_mask)


def pieces(sequence: TokenSequence, length: int) -> Iterator[TokenSequence]:
    """Consecutive pieces of at most `length` tokens that share one token, so that each token is a target once."""
    for start in range(0, len(sequence) - 1, length - 1):
        yield sequence.cut(start, start + length)


def _lost(sequence: TokenSequence, fitted: Sequence[TokenSequence], kept: Sequence[TokenSequence]) -> int:
    """Tokens of `sequence` that are in none of what is kept of it; pieces share one token with their neighbours."""
    shared = max(0, len(fitted) - 1)
    return len(sequence) + shared - sum(len(each) for each in kept) if kept else len(sequence)


def length_limit(context_length: int | None, max_length: int | None) -> int | None:
    """The longest sequence allowed, in tokens: the shorter of the model's context and what the options say."""
    return min((limit for limit in (context_length, max_length) if limit is not None), default=None)
