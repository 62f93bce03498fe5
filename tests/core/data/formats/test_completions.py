"""Answers that `lmflow generate` wrote, as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmflow.data.formats import FORMATS, Completions, Formats
from lmflow.data.record import Record
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError
from lmflow.inference.prompts import completion_record
from lmflow.inference.types import Completion

S, Q, A, B = (Message(*each) for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "finish_reason": "eos", "tokens": 3, "logprob": -1.0, **more}


def read(*completions: Any, **more: Any) -> Sample:
    return Completions().sample({"index": 0, "prompt": "q", "completions": [*completions], **more}, "f:1")


@pytest.mark.parametrize("prompt", [(Q,), (S, Q), (Q, A, Q)], ids=len)
def test_what_generate_writes_is_read(prompt: tuple[Message, ...]):
    sampled = [Completion((1, 2), text, (-0.5, -0.5), "eos") for text in ("a", "b")]
    record = json.loads(json.dumps(completion_record(3, Sample((*prompt, A), source="p:1"), sampled)))
    kind = Formats(FORMATS).resolve([Record(record, "f:1")])
    found = kind.sample(record, "f:1")
    assert (kind.name, found.messages, found.rejected) == ("completions", (*prompt, A), ())
    assert (found.answers, found.templated) == ((Answer("a"), Answer("b")), True)


def test_with_rewards_the_best_is_preferred():
    found = read(said("a", reward=0.5), said("b", reward=2), said("c", reward=1))
    assert (found.messages, found.rejected) == ((Q, B), (Q, A))
    assert found.answers == (Answer("a", 0.5), Answer("b", 2.0), Answer("c", 1.0))
    nearest = Completions(against="next").sample(found.record, "f:1")
    assert nearest.rejected == (Q, Message("assistant", "c"))
    assert read(said("a", score=1), said("b", score=1)).rejected == (), "equals are no preference"


def test_what_was_cut_off_is_no_answer():
    found = read(said("a lo", finish_reason="length"), said("b"))
    assert (found.messages, found.answers) == ((Q, B), ())
    with pytest.raises(DataError, match=r"^f:1: completions: each was cut off at the limit of new tokens"):
        read(said("a lo", finish_reason="length"))


@pytest.mark.parametrize(
    ("completions", "more", "message"),
    [
        ([], {}, "completions: expected a list of at least one completion, found a list"),
        ([], {"error": "too long"}, r"completions: expected .* \(too long\)"),
        (["a"], {}, r"completions\[0\]: expected an object with text"),
        ([{"text": 3}], {}, r"completions\[0\]\.text: expected text, found a number 3"),
        ([said("a", reward="high")], {}, r"completions\[0\]\.reward: expected a finite number"),
        ([said("a", reward=1), said("b")], {}, "completions: some have a reward and others have none"),
        ([said("a")], {"images": ["x.png"]}, "images: completions holds none"),
        ([said("a")], {"prompt": 3}, "prompt: expected text"),
        ([said("a")], {"messages": []}, "messages: expected a list of at least one turn"),
    ],
)
def test_completions_that_cannot_be_read(completions: Any, more: Any, message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        read(*completions, **more)
