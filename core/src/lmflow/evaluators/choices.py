"""Evaluator `choices`: which of the answers that a record offers the model finds likeliest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lmflow.components import EvaluateContext, Evaluation, Evaluator
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.data.sample import Sample, TokenSequence
    from lmflow.models.language_model import LanguageModel


class Choices(Evaluator):
    """Share of records whose right answer is the likeliest of those they offer: yes/no/maybe, A to D, endings."""

    name = "choices"

    field: str = Field(
        "choices",
        min_length=1,
        description="The record's field that lists its answers: texts, or {text: [...], label: [...]} as ARC has them.",
    )
    answer_field: str | None = Field(
        None,
        description="The field that says which is right, by text, label or place from 0; the record's own answer if "
        "unset.",
    )
    choices: tuple[str, ...] = Field(
        (), description="Answers of every record, where they are always the same and the records do not list them."
    )
    normalise: Literal["none", "tokens", "bytes"] = Field(
        "none",
        description="What an answer's log-probability is divided by: nothing, or its number of tokens or UTF-8 bytes, "
        "so that long answers are not unlikelier for being long.",
    )
    count_end: bool = Field(False, description="Also count the token that ends the answer, as in training.")
    batch_tokens: int = Field(4096, gt=0, description="Most tokens in one forward pass.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Sum the log-probabilities of each answer's tokens, each predicted from all before it, and take the largest.

        Metrics are `accuracy`, `standard_error`, `correct`, `chance` (what guessing would reach) and `records`; rows
        have each answer's log-probability, tokens and score. A record longer than the model's context is read in
        windows that overlap by half. Raises DataError for a record without answers, or whose own is none of them.
        """
        from lmflow.evaluators.accuracy import share_right
        from lmflow.evaluators.scoring import token_losses

        model, samples, log = context.model, context.samples, context.log
        if not samples:
            raise DataError("choices: there is no record to measure")
        offered = [self._offered(sample) for sample in samples]
        sequences = [
            answered(model, sample, text, count_end=self.count_end)
            for sample, (texts, _) in zip(samples, offered, strict=True)
            for text in texts
        ]
        window = model.context_length
        stride = 1 if window is None else max(1, window // 2)
        with log.phase("scoring answers", sum(len(each) - 1 for each in sequences)):
            losses = token_losses(model, sequences, window, stride, self.batch_tokens, log)
        scored = iter(zip(sequences, losses, strict=True))
        rows = []
        for sample, (texts, right) in zip(samples, offered, strict=True):
            answers = [self._score(text, *next(scored)) for text in texts]
            best = max(range(len(answers)), key=lambda index: answers[index]["score"])
            rows.append(
                {
                    "source": sample.source,
                    "prompt": sample.prompt_text,
                    "expected": texts[right],
                    "answer": texts[best],
                    "correct": best == right,
                    "choices": answers,
                }
            )
        chance = sum(1 / len(texts) for texts, _ in offered) / len(offered)
        return Evaluation({**share_right("accuracy", rows), "chance": chance, "records": len(rows)}, rows)

    def _score(self, text: str, sequence: TokenSequence, losses: Any) -> dict[str, Any]:
        """An answer's log-probability in nats, how many tokens it has, and the score it is ranked by."""
        counted = [loss for loss, counts in zip(losses.tolist(), sequence.loss_mask[1:], strict=True) if counts]
        if not counted:
            raise DataError(f"{sequence.source}: the answer {text!r} holds no token, so it has no probability")
        logprob = -sum(counted)
        size = {"none": 1, "tokens": len(counted), "bytes": max(1, len(text.encode()))}[self.normalise]
        return {"text": text, "logprob": logprob, "tokens": len(counted), "score": logprob / size}

    def _offered(self, sample: Sample) -> tuple[list[str], int]:
        """The answers a record offers, and which of them is right."""
        given = list(self.choices) if self.choices else sample.record.get(self.field)
        texts, labels = listed_answers(given)
        if len(texts) < 2:
            raise DataError(
                f"{sample.source}: choices needs a list of two answers or more in the record's field {self.field!r} "
                "(name another with --evaluator.field, or give them with --evaluator.choices)"
            )
        if self.answer_field is not None:
            wanted = sample.record.get(self.answer_field)
        else:
            answer = sample.messages[-1]
            wanted = answer.content if answer.role == "assistant" and len(sample.messages) > 1 else None
        right = place_of(wanted, texts, labels, by_place=self.answer_field is not None)
        if right is None:
            raise DataError(
                f"{sample.source}: its right answer {wanted!r} is none of its choices {texts}; name the field that "
                "says which is right with --evaluator.answer_field"
            )
        return texts, right


def listed_answers(given: Any) -> tuple[list[str], list[str]]:
    """Texts and labels of a record's answers; nothing where it is no list of texts."""
    labels: Any = []
    if isinstance(given, Mapping):
        given, labels = given.get("text"), given.get("label", [])
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        return [], []
    return list(given), [str(each) for each in labels] if isinstance(labels, list | tuple) else []


def place_of(wanted: Any, texts: Sequence[str], labels: Sequence[str], *, by_place: bool) -> int | None:
    """Which answer is meant: by its text, its label, or with `by_place` its place from 0 (3 or "3")."""
    if wanted is None or isinstance(wanted, bool):
        return None
    said = str(wanted).strip()
    for names in (texts, labels):
        stripped = [name.strip() for name in names]
        if said in stripped:
            return stripped.index(said)
    if by_place and said.isdecimal() and int(said) < len(texts):
        return int(said)
    return None


def answered(model: LanguageModel, sample: Sample, text: str, *, count_end: bool) -> TokenSequence:
    """The sample's prompt and `text` as the answer, whose tokens alone are targets."""
    from lmflow.data.sample import Message

    asked = [replace(turn, is_target=False) if turn.role == "assistant" else turn for turn in sample.prompt().messages]
    whole = replace(sample, messages=(*asked, Message("assistant", text)), answers=(), rejected=(), label=None)
    [sequence] = model.encode(whole)
    last = max((place for place, counts in enumerate(sequence.loss_mask) if counts), default=None)
    if last is None or count_end or sequence.ids[last] not in model.end_ids:
        return sequence
    mask = list(sequence.loss_mask)
    mask[last] = False
    return replace(sequence, loss_mask=mask)
