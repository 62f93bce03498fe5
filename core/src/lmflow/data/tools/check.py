"""What is wrong with a data set, found by reading all of it: records, dialogues, tokens, and what two parts share."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Protocol

from lmflow.data.dataset import names_of, split
from lmflow.data.lengths import LengthFitter, is_plain_text, length_limit
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.data.source import places, scan_source, validation_source
from lmflow.errors import DataError
from lmflow.formatting import counted

if TYPE_CHECKING:
    from lmflow.data.formats.recognising import Formats
    from lmflow.recipe.sections.data import DataOptions

KINDS: Mapping[str, tuple[bool, str]] = {
    "bad_record": (True, "records that cannot be used"),
    "cannot_be_tokenised": (True, "samples that the model cannot be given"),
    "over_length": (True, "samples at which --data.too_long error stops a run"),
    "end_not_trained": (True, "answers whose end the model would not learn"),
    "not_what_was_written": (True, "samples whose tokens do not give back their text"),
    "leak": (False, "validation samples that are also trained on"),
    "empty_turn": (False, "turns without text"),
    "role_order": (False, "dialogues whose turns are in an odd order"),
    "earlier_end_not_trained": (False, "earlier answers of a dialogue whose end the model would not learn"),
    "cut_off": (False, "samples cut off or skipped at the length limit"),
    "nothing_to_train": (False, "samples without a trained token"),
    "same_answers": (False, "preferences between an answer and itself"),
    "duplicate": (False, "samples that occur before"),
    "shared_prompt": (False, "validation samples whose prompt is also trained on"),
}
"""Each kind of finding: whether it would waste a run, and what it is."""

ONE: Mapping[str, str] = {
    "bad_record": "record that cannot be used",
    "cannot_be_tokenised": "sample that the model cannot be given",
    "over_length": "sample at which --data.too_long error stops a run",
    "end_not_trained": "answer whose end the model would not learn",
    "not_what_was_written": "sample whose tokens do not give back its text",
    "leak": "validation sample that is also trained on",
    "empty_turn": "turn without text",
    "role_order": "dialogue whose turns are in an odd order",
    "earlier_end_not_trained": "earlier answer of a dialogue whose end the model would not learn",
    "cut_off": "sample cut off or skipped at the length limit",
    "nothing_to_train": "sample without a trained token",
    "same_answers": "preference between an answer and itself",
    "duplicate": "sample that occurs before",
    "shared_prompt": "validation sample whose prompt is also trained on",
}
"""What a single finding of each kind is."""

WASTED_SHARE = 0.5
"""Where more than this share of the samples has nothing to train on, training on them is no use."""
LEAKED_SHARE = 0.1
"""Where more than this share of a validation file is trained on, it shows nothing."""
BINS = 10
SOURCE = re.compile(r"(?P<file>.+?)(?::(?P<line>\d+)|: (?:record|instance|row) (?P<record>\d+))")
"""Where a record stands: a line of a file, or the record of that number in it."""
FIELD = re.compile(r"[\w.\[\]-]+(?=: )")


class TextModel(Protocol):
    """What a check asks of a model: how it turns samples into tokens. A `LanguageModel` is one."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of Transformers."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model reads, in tokens."""

    def encode(self, sample: Sample, train_on: str = ...) -> list[TokenSequence]:
        """The sample as token sequences."""


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
class CheckReport:
    """Everything found in a data set. Token figures are None where no model was given to count with."""

    path: str | None = None
    format: str = ""
    """What the records mean; "" where none of them could be used to recognise it."""
    records: int = 0
    samples: int = 0
    validation: int = 0
    """How many of them are held out."""
    own_validation: bool = False
    """Whether these are a file of their own, so that it is not chance that puts a sample on both sides."""
    unread: tuple[str, ...] = ()
    """Fields that say something and that the format does not read."""
    findings: list[Finding] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    tokens: int | None = None
    num_targets: int | None = None
    lengths: list[int] = field(default_factory=list)
    rules: Mapping[str, Any] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    """What the length rules took away or cut, a line for each."""

    @property
    def counts(self) -> dict[str, int]:
        """How many findings of each kind there are; only those there are."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    @property
    def wasteful(self) -> list[str]:
        """Why training on this would be a waste, empty if it would not."""
        reasons = [counted(count, ONE[kind], KINDS[kind][1]) for kind, count in self.counts.items() if KINDS[kind][0]]
        untrained = self.counts.get("nothing_to_train", 0)
        if self.samples and untrained > WASTED_SHARE * self.samples:
            has = "has" if untrained == 1 else "have"
            reasons.append(f"{untrained:,} of {counted(self.samples, 'sample')} {has} nothing to train on")
        leaked = self.counts.get("leak", 0)
        if self.own_validation and leaked > LEAKED_SHARE * self.validation:
            trained = "is also trained on" if leaked == 1 else "are also trained on"
            reasons.append(f"{leaked:,} of {counted(self.validation, 'validation sample')} {trained}")
        if not self.samples:
            reasons.append("no sample at all")
        return reasons

    def histogram(self) -> list[tuple[int, int, int]]:
        """Shortest, longest and count of each bin of lengths, in tokens; bins are equally wide."""
        if not self.lengths:
            return []
        low, high = min(self.lengths), max(self.lengths)
        width = max(1, -(-(high - low + 1) // BINS))
        counts = Counter((length - low) // width for length in self.lengths)
        return [(low + b * width, low + (b + 1) * width - 1, counts[b]) for b in range(max(counts) + 1)]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "path": self.path,
            "format": self.format,
            "unread": list(self.unread),
            "records": self.records,
            "samples": self.samples,
            "validation": self.validation,
            "turns": dict(self.turns),
            "tokens": self.tokens,
            "num_targets": self.num_targets,
            "histogram": [{"from": low, "to": high, "samples": count} for low, high, count in self.histogram()],
            "lengths": dict(self.rules),
            "counts": self.counts,
            "wasteful": self.wasteful,
            "findings": [finding.as_dict() for finding in self.findings],
        }


def check_data(data: DataOptions, formats: Formats, model: TextModel | None) -> CheckReport:
    """Read everything that `data` names, the validation file too, and report what is wrong with it.

    Raises DataError where a file as a whole, or its format, cannot be read.
    """
    read = partial(scan_source, shown=None)
    sources = [read(place, formats, folder) for place, folder in places(data)]
    held = None if data.path is None and not data.mix else validation_source(data, formats, read)
    checker = Checker(model, data)
    for source in (*sources, *([held] if held else [])):
        for problem in source.problems:
            checker.bad(problem)
    sides = [split(source.samples, held, data, 0) for source in sources if source.samples]
    for train, _ in sides:
        for sample in train:
            checker.train(sample)
    for heldout in [held.samples] if held else [part for _, part in sides]:
        for sample in heldout:
            checker.validation(sample)
    report = checker.finish()
    report.path = data.path or ", ".join(data.mix) or None
    report.format = names_of(sources)
    report.records = sum(source.records for source in sources)
    report.unread = tuple(dict.fromkeys(name for source in sources for name in source.unread))
    return report


class Checker:
    """Looks at samples one after the other; remembers 32 bytes of each to know it again."""

    def __init__(self, model: TextModel | None, options: DataOptions) -> None:
        self.report = CheckReport(own_validation=isinstance(options.validation, str))
        self._model = model
        self._train_on = options.train_on
        self._seen: dict[bytes, str] = {}
        self._prompts: dict[bytes, str] = {}
        self._fitter: LengthFitter | None = None
        self._policy = options.too_long
        if model is not None:
            policy = "truncate" if options.too_long == "error" else options.too_long
            self._fitter = LengthFitter(length_limit(model.context_length, options.max_length), policy)
            self.report.tokens = self.report.num_targets = 0

    def bad(self, problem: str) -> None:
        """Note a record that cannot be used, by the message of its error."""
        at = SOURCE.match(problem)
        source = at.group() if at else problem.partition(": ")[0]
        self._find("bad_record", source, problem.removeprefix(source).removeprefix(": "))

    def train(self, sample: Sample) -> None:
        """Look at a sample that would be trained on."""
        self._look(sample)
        key = digest_of(sample)
        if key in self._seen:
            self._find("duplicate", sample.source, f"the same as {self._seen[key]}")
        self._seen.setdefault(key, sample.source)
        self._prompts.setdefault(digest_of_prompt(sample), sample.source)

    def validation(self, sample: Sample) -> None:
        """Look at a sample that would be held out, after all that are trained on."""
        self._look(sample)
        self.report.validation += 1
        same, asked = self._seen.get(digest_of(sample)), self._prompts.get(digest_of_prompt(sample))
        if same is not None:
            self._find("leak", sample.source, f"the same as {same}")
        elif asked is not None and len(sample.messages) > 1:
            self._find("shared_prompt", sample.source, f"the prompt of {asked}")

    def finish(self) -> CheckReport:
        """The report."""
        if self._fitter is not None and self._fitter.kept:
            lengths = self._fitter.report()
            self.report.rules = lengths.as_dict()
            self.report.touched = lengths.table()
        return self.report

    def _look(self, sample: Sample) -> None:
        self.report.samples += 1
        self.report.turns.update(turn.role for turn in sample.messages)
        for kind, detail in faults(sample):
            self._find(kind, sample.source, detail)
        if self._model is not None:
            self._count(self._model, sample)

    def _count(self, model: TextModel, sample: Sample) -> None:
        """Tokens of the sample, and what is wrong with them."""
        assert self._fitter is not None
        try:
            sequences = model.encode(sample, self._train_on)
        except DataError as error:
            self._find("cannot_be_tokenised", sample.source, str(error).removeprefix(f"{sample.source}: "))
            return
        self.report.lengths += [len(sequence) for sequence in sequences]
        fitted = [each for sequence in sequences for each in self._fitter.fit(sequence)]
        self.report.tokens = self._fitter.tokens
        self.report.num_targets = self._fitter.num_targets
        skipped = self._policy == "skip" and any(sequence.num_targets for sequence in sequences)
        unwanted = sample.label is False  # its answer stands beside the messages
        if not (fitted or skipped or unwanted):
            self._find("nothing_to_train", sample.source, "no token of it is trained")
        for sequence in sequences:
            self._measure(sequence)
        for kind, detail in token_faults(model, sample, sequences):
            self._find(kind, sample.source, detail)

    def _measure(self, sequence: TokenSequence) -> None:
        """Note a sequence that is longer than allowed, unless it is split, which loses nothing."""
        limit = self._fitter.limit if self._fitter else None
        if limit is None or len(sequence) <= limit:
            return
        if self._policy == "split" or (self._policy == "auto" and is_plain_text(sequence)):
            return
        kind = "over_length" if self._policy == "error" else "cut_off"
        self._find(kind, sequence.source, f"{len(sequence):,} tokens, more than {limit:,}")

    def _find(self, kind: str, source: str, detail: str) -> None:
        self.report.findings.append(Finding(kind, source, detail))


def faults(sample: Sample) -> Iterator[tuple[str, str]]:
    """What is odd about a sample's turns, as kinds and details."""
    yield from (("empty_turn", f"turn {place}") for place in empty_turns(sample.messages))
    if sample.rejected:
        yield from (("empty_turn", f"rejected turn {place}") for place in empty_turns(sample.rejected))
        if sample.rejected == sample.messages:
            yield "same_answers", "chosen and rejected are the same"
    if not sample.templated:
        return
    roles = [turn.role for turn in sample.messages]
    if "system" in roles[1:]:
        yield "role_order", f"turn {roles.index('system', 1) + 1} is the system's, which comes first or not at all"
    spoken = [role for role in roles if role != "system"]
    if spoken and spoken[0] != "user":
        yield "role_order", f"the dialogue begins with {spoken[0]}"
    for before, after in pairwise(spoken):
        if before == after and before != "tool":
            yield "role_order", f"two turns of {before} in a row"
            break
    if spoken and spoken[-1] in ("user", "tool") and "assistant" in spoken:
        yield "role_order", f"the last turn is the {spoken[-1]}'s; nothing answers it"


def empty_turns(turns: Sequence[Message]) -> Iterator[str]:
    """Number and role of each turn that says, shows and calls nothing."""
    for number, turn in enumerate(turns, 1):
        if not (turn.content.strip() or turn.images or turn.tool_calls):
            yield f"{number} ({turn.role})"


def token_faults(model: TextModel, sample: Sample, sequences: list[TokenSequence]) -> Iterator[tuple[str, str]]:
    """What is wrong with a sample's tokens, as kinds and details."""
    yield from end_faults(model, sample, sequences)
    text = "".join(model.tokenizer.decode(list(sequence.ids), skip_special_tokens=False) for sequence in sequences)
    for index, turn in enumerate(sample.messages):
        lost = turn.content.strip()
        if turn.role == "assistant" and lost not in text:
            known = model.tokenizer.decode(model.tokenizer(lost, add_special_tokens=False)["input_ids"])
            if known.strip() not in text:
                yield "not_what_was_written", f"turn {index + 1} is not in the text the model is given"


def end_faults(model: TextModel, sample: Sample, sequences: Sequence[TokenSequence]) -> Iterator[tuple[str, str]]:
    """Trained stretches that do not end with an end of the turn: the last of each sequence, and those before it."""
    if sample.messages[-1].role != "assistant":
        return
    stretches = [trained_stretches(sequence) for sequence in sequences]
    answers = sum(turn.role == "assistant" for turn in sample.messages)
    alike = sum(map(len, stretches)) == answers  # a stretch is an answer: else only the last is known to be one
    for each in stretches:
        for number, ids in enumerate(each, 1):
            kind = "end_not_trained" if number == len(each) else "earlier_end_not_trained"
            if (number == len(each) or alike) and not ends_well(model, ids):
                last = model.tokenizer.convert_ids_to_tokens(ids[-1])
                yield kind, f"the last trained token{f' of answer {number}' if len(each) > 1 else ''} is {last!r}"


def trained_stretches(sequence: TokenSequence) -> list[list[int]]:
    """The ids of each run of trained tokens."""
    runs = groupby(zip(sequence.ids, sequence.loss_mask, strict=True), key=lambda pair: bool(pair[1]))
    return [[int(each) for each, _ in run] for trained, run in runs if trained]


def ends_well(model: TextModel, ids: Sequence[int]) -> bool:
    """Whether the last token that is no empty space ends a turn."""
    for each in reversed(ids):
        if each in model.end_ids:
            return True
        if model.tokenizer.decode([each]).strip():
            return False
    return False


def digest_of(sample: Sample) -> bytes:
    """A digest of all that a sample says, whatever file it is from."""
    return _digest(sample.messages, sample.rejected, sample.tools, sample.label, sample.answers)


def digest_of_prompt(sample: Sample) -> bytes:
    """A digest of what a sample asks."""
    return _digest(sample.prompt().messages, sample.tools)


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
