"""What a turn says of itself beside its content: whether it is to be learnt, and what was thought before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmflow.data.record import describe
from lmflow.errors import DataError

LEARNT = ("loss", "train", "trainable", "training", "learn", "compute_loss")
"""Fields of a turn that are true where it is learnt."""
WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""The same as a number, 0 or 1: a single answer cannot be weighted."""
MASK = "mask"
"""A field of a turn that is true in some sets where it is not learnt, and 1 in others where it is."""
MASKED = ("masked", MASK, "no_loss")
"""Fields of a turn that are true where it is not learnt."""
PARTLY = ("train_detail", "training_detail")
"""Fields that tell which characters of an answer are learnt."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What some sets put beside an answer: the thoughts that led to it."""
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
ONLY_ANSWERS = "only answers are trained; leave the field out, and train everything with --data.train_on all"


def is_target(turn: Mapping[str, Any], role: str, source: str, place: str) -> bool:
    """Whether a turn is to be learnt, as its own fields say; an answer is where none says otherwise.

    Raises DataError naming the field for a value that says neither, for fields that contradict each other, for an
    answer that is to be learnt in part, and for a turn that is to be learnt and is no answer.
    """
    for field in PARTLY:
        if turn.get(field):
            raise DataError(f"{source}: {place}.{field}: an answer is learnt whole or not at all, no part of it alone")
    said = {field: _flag(turn[field], field, f"{source}: {place}.{field}") for field in _flags_of(turn)}
    wrong = next((field for field, learnt in said.items() if learnt and role != "assistant"), None)
    if wrong is not None:
        raise DataError(f"{source}: {place}.{wrong}: says that a turn of the {role} is learnt; {ONLY_ANSWERS}")
    if len(set(said.values())) > 1:
        raise DataError(f"{source}: {place}: {' and '.join(said)} do not agree whether the answer is to be learnt")
    return all(said.values()) or role != "assistant"


def check_masks(turns: Sequence[Any], are_answers: Sequence[bool], source: str, field: str) -> None:
    """Raise DataError where turns have a `mask` and nothing tells what it means.

    Where all turns are masked that are never learnt, those of the user and others, it is what `masked` is.
    """
    said = [turn for turn in turns if isinstance(turn, Mapping) and turn.get(MASK) is not None]
    others = [turn for turn, is_answer in zip(turns, are_answers, strict=True) if not is_answer]
    if said and not (others and all(turn in said and turn[MASK] in (True, 1) for turn in others)):
        place = f"{field}.{MASK}"
        raise DataError(
            f"{source}: {field}[{turns.index(said[0])}].{MASK}: means in some sets that a turn is not learnt, and in "
            f"others that it is. Say which: --data.columns {field}.masked={place} where true is not learnt, "
            f"{field}.train={place} where true is learnt; or leave it out with --data.ignore {place}"
        )


def not_learnt(record: Mapping[str, Any]) -> list[str]:
    """Fields of a whole record that say that it is not to be learnt: false, 0, or masked; any `mask`, which may."""
    said = {field: record.get(field) for field in (*LEARNT, *WEIGHTS, *MASKED)}
    return [
        field
        for field, value in said.items()
        if isinstance(value, bool | int | float) and (value == (field in MASKED) or (field == MASK and value == 0))
    ]


def _flags_of(turn: Mapping[str, Any]) -> list[str]:
    return [field for field in (*LEARNT, *WEIGHTS, *MASKED) if turn.get(field) is not None]


def _flag(value: Any, field: str, place: str) -> bool:
    """Whether the field says that its turn is learnt."""
    known = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, int | float) and value in (0, 1):
        known = bool(value)
    if known is None:
        what = "0 or 1, as a single answer cannot be weighted" if field in WEIGHTS else "true or false"
        raise DataError(f"{place}: expected {what}, found {describe(value)}")
    return known != (field in MASKED)


def thinking_of(turn: Mapping[str, Any], role: str, source: str, place: str) -> str | None:
    """What the assistant thinks before it answers, where that stands beside the content.

    Raises DataError for thoughts that are no text, for two that differ, and for those of another than the assistant.
    """
    said = {field: turn[field] for field in REASONING if turn.get(field) not in (None, "")}
    for field, value in said.items():
        if not isinstance(value, str):
            raise DataError(f"{source}: {place}.{field}: expected text, found {describe(value)}")
        if role != "assistant":
            raise DataError(f"{source}: {place}.{field}: only an answer has thoughts, this is a turn of the {role}")
    if len(set(said.values())) > 1:
        raise DataError(f"{source}: {place}: {' and '.join(said)} are not the same thoughts; keep one of them")
    return next(iter(said.values()), None)
