"""What is wrong with the tokens of samples: answers that do not end, special tokens that stand in what is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from lmflow.data.control_tokens import control_tokens_of
from lmflow.data.sample import Sample, TokenSequence
from lmflow.data.template_traits import traits_of
from lmflow.data.turn_forms import without_thought


class TextModel(Protocol):
    """What findings and counts ask of a model: how it turns samples into tokens. A `LanguageModel` is one."""

    @property
    def tokenizer(self) -> Any:
        """A tokenizer of Transformers."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def context_length(self) -> int | None:
        """Longest sequence the model reads, in tokens."""

    def encode_all(self, samples: Sequence[Sample], train_on: str = ...) -> list[list[TokenSequence]]:
        """The samples as token sequences."""


class TokenChecker:
    """Looks at the tokens of samples without decoding them: a few microseconds each."""

    def __init__(self, model: TextModel, train_on: str) -> None:
        self._tokenizer = model.tokenizer
        self._train_on = train_on
        self._control = control_tokens_of(model.tokenizer)
        self._ends = {*model.end_ids, *self._control.ids}
        self._blank: dict[int, bool] = {}
        has_template = getattr(model.tokenizer, "chat_template", None) is not None
        self._traits = traits_of(model.tokenizer) if has_template else None

    def findings(self, sample: Sample, sequences: Sequence[TokenSequence]) -> Iterator[tuple[str, str]]:
        """What is wrong with a sample's tokens, as kinds and details."""
        if sample.templated:
            yield from (("control_token", detail) for detail in self._control.places_in(sample))
            yield from (("thought_not_asked_for", f"turn {place}") for place in self._thoughts_in_front(sample))
        yield from self.end_findings(sample, sequences)

    def _thoughts_in_front(self, sample: Sample) -> Iterator[int]:
        """The turns whose thoughts the template writes in front of what it asks answers with."""
        if self._traits is None or not self._traits.thinks_before_prompt:
            return
        for number, turn in enumerate(sample.messages, 1):
            if turn.is_target and without_thought(turn, self._traits.form) != turn:
                yield number

    def end_findings(self, sample: Sample, sequences: Sequence[TokenSequence]) -> Iterator[tuple[str, str]]:
        """Trained stretches that do not end with a special token: the last of each sequence, and those before it."""
        if sample.messages[-1].role != "assistant":
            return
        last_is_trained = sample.messages[-1].is_target or len(sequences) > 1
        found = [list(target_runs(sequence)) for sequence in sequences]
        for sequence, runs, names in zip(sequences, found, answer_names(sample, list(map(len, found))), strict=True):
            for (start, end), name in zip(runs, names, strict=True):
                is_last = last_is_trained and end == runs[-1][1]
                if (is_last or name) and not self.ends_well(sequence.ids[start:end]):
                    last = self._tokenizer.convert_ids_to_tokens(int(sequence.ids[end - 1]))
                    kind = "end_not_trained" if is_last else "earlier_end_not_trained"
                    yield kind, f"the last trained token{f' of {name}' if name else ''} is {last!r}"

    def ends_well(self, ids: Sequence[int]) -> bool:
        """Whether the last token that is no empty space is a special one; where all is trained, whether one is."""
        if self._train_on == "all":
            return not self._ends.isdisjoint(ids)
        for each in reversed(ids):
            if each in self._ends:
                return True
            if not self._is_blank(int(each)):
                return False
        return False

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._tokenizer.decode([token]).strip()
        return self._blank[token]


def answer_names(sample: Sample, runs: Sequence[int]) -> list[list[str]]:
    """Which answer each run of trained tokens is ("answer 1 of 2"), where sequences have so many `runs`.

    "" where the record has one answer alone, and where a run is not known to be an answer: a template may mark others,
    and of several sequences each trains the answer that it ends with.
    """
    answers = [turn.is_target for turn in sample.messages if turn.role == "assistant"]
    if len(answers) < 2:
        return [[""] * count for count in runs]
    names = [f"answer {number} of {len(answers)}" for number, is_target in enumerate(answers, 1) if is_target]
    if list(runs) == [len(names)]:
        return [names]
    if len(runs) == len(names) and all(runs):
        return [[*[""] * (count - 1), name] for count, name in zip(runs, names, strict=True)]
    return [[""] * count for count in runs]


def target_runs(sequence: TokenSequence) -> Iterator[tuple[int, int]]:
    """Where each run of trained tokens begins and ends."""
    mask = bytes(sequence.loss_mask)
    start = mask.find(1)
    while start >= 0:
        end = mask.find(0, start)
        end = len(mask) if end < 0 else end
        yield start, end
        start = mask.find(1, end)
