"""The format of what `lmflow generate` writes, so that sampled answers are data again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmflow.components import DataFormat
from lmflow.data.formats.dialogues import prompt_of
from lmflow.data.formats.fields import bad, text_of, turns_of
from lmflow.data.formats.plain import AGAINST, Against, compared
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError

SCORES = ("reward", "score")
"""Fields of a completion that say how good it is."""
CUT = "length"
"""Why a completion ended that the limit of new tokens cut off."""


class Completions(DataFormat):
    """Sampled answers: {"prompt", "messages"?, "completions": [{"text", "finish_reason"?, "reward"?}]} (generate).

    With rewards the best is trained, without the first; what was cut off at the length limit is no answer.
    """

    name = "completions"

    against: Against = AGAINST

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """A prompt and a list of completions."""
        return "prompt" in record and isinstance(record.get("completions"), list)

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """The prompt and the best completion, or the first; all that are whole are its `answers`."""
        if record.get("images"):
            raise DataError(f"{source}: images: {self.name} holds none, so the answers would be to something unseen")
        prompt, answers = self._prompt(record, source), _answers(record, source)
        scored = all(answer.score is not None for answer in answers)
        best, other = compared(answers, self.against) if scored else (answers[0], None)
        turns = (*prompt, Message("assistant", best.text))
        rejected = (*prompt, Message("assistant", other.text)) if other else ()
        return Sample(turns, True, record, source, rejected=rejected, answers=answers if len(answers) > 1 else ())

    def _prompt(self, record: Mapping[str, Any], source: str) -> tuple[Message, ...]:
        if record.get("messages") is None:
            return prompt_of(record, source)
        return turns_of(record, "messages", source, role="role", content="content")


def _answers(record: Mapping[str, Any], source: str) -> tuple[Answer, ...]:
    """The completions that ended by themselves. Raises DataError where there is none."""
    found = record.get("completions")
    if not isinstance(found, list) or not found:
        why = f" ({record['error']})" if record.get("error") else ""
        missing = "completions" not in record
        raise DataError(
            f"{bad(source, 'completions', 'a list of at least one completion', found, missing=missing)}{why}"
        )
    answers = [_answer(each, f"completions[{index}]", source) for index, each in enumerate(found)]
    whole = tuple(answer for answer, cut in answers if not cut)
    if not whole:
        raise DataError(
            f"{source}: completions: each was cut off at the limit of new tokens, so none shows how an answer ends; "
            "sample longer ones, or leave such records out with --data.on_bad_record skip"
        )
    _check_scores(whole, source)
    return whole


def _answer(value: Any, place: str, source: str) -> tuple[Answer, bool]:
    """A completion, and whether it was cut off."""
    if not isinstance(value, dict):
        raise bad(source, place, "an object with text", value)
    field = next((each for each in SCORES if value.get(each) is not None), None)
    score = value[field] if field else None
    if field and (isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score)):
        raise bad(source, f"{place}.{field}", "a finite number", score)
    text = text_of({f"{place}.text": value.get("text")}, f"{place}.text", source)
    if not isinstance(value.get("finish_reason"), str | None):
        raise bad(source, f"{place}.finish_reason", "text", value["finish_reason"])
    return Answer(text, None if score is None else float(score)), value.get("finish_reason") == CUT


def _check_scores(answers: Sequence[Answer], source: str) -> None:
    if len({answer.score is None for answer in answers}) > 1:
        raise DataError(
            f"{source}: completions: some have a reward and others have none; give all of them one, or none"
        )
