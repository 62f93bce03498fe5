"""Choices by likelihood: the sums are those of plain forward passes, whatever is offered and however it is listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.evaluators.choices import Choices, listed_answers, place_of
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context

YES_NO = ["yes", "no", "maybe so"]


def record(answer: str | None, number: int = 1, *, templated: bool = True, **fields: Any) -> Sample:
    question = Message("user", f"Does number {number} help? " + "It was tried. " * number)
    turns = (question,) if answer is None else (question, Message("assistant", answer))
    return Sample(turns, templated, fields, f"q.jsonl:{number}")


def brute_force(model: Any, sample: Sample, text: str, *, end: bool) -> list[float]:
    """Log-probabilities of the answer's tokens, from one plain pass over the whole text in float64."""
    prompt = list(model.encode_prompt(sample).ids)
    answer = model.tokenizer(text, add_special_tokens=False)["input_ids"] + ([model.end_ids[0]] if end else [])
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]


@pytest.mark.parametrize("templated", [True, False])
@pytest.mark.parametrize("count_end", [False, True])
@pytest.mark.parametrize("normalise", ["none", "tokens", "bytes"])
def test_sums_are_those_of_a_plain_forward_pass(
    templated: bool, count_end: bool, normalise: Any, tiny_model: Any, log: RunLog
):
    samples = [record(YES_NO[n % 3], n, templated=templated, choices=YES_NO) for n in range(1, 5)]
    evaluator = Choices(normalise=normalise, count_end=count_end, batch_tokens=64)
    found = evaluator.evaluate(evaluate_context(tiny_model, samples, None, log))
    right = 0
    for sample, row in zip(samples, found.rows, strict=True):
        scores = []
        for text, answer in zip(YES_NO, row["choices"], strict=True):
            expected = brute_force(tiny_model, sample, text, end=count_end)
            assert answer["tokens"] == len(expected)
            assert answer["logprob"] == pytest.approx(sum(expected), abs=1e-4)
            size = {"none": 1, "tokens": len(expected), "bytes": len(text.encode())}[normalise]
            scores.append(sum(expected) / size)
            assert answer["score"] == pytest.approx(scores[-1], abs=1e-4)
        assert row["answer"] == YES_NO[scores.index(max(scores))]
        assert row["expected"] == sample.messages[-1].content
        right += row["correct"]
    assert found.metrics["correct"] == right
    assert found.metrics["accuracy"] == right / 4
    assert found.metrics["chance"] == pytest.approx(1 / 3)


def test_records_as_arc_hellaswag_and_pubmedqa_have_them(tiny_model: Any, log: RunLog):
    arc = record(None, 1, choices={"text": ["ice", "steam"], "label": ["A", "B"]}, answerKey="B")
    found = Choices(answer_field="answerKey").evaluate(evaluate_context(tiny_model, [arc], None, log))
    assert found.rows[0]["expected"] == "steam"
    swag = record(None, 2, templated=False, endings=[" runs.", " sits down.", " flies."], label="2")
    found = Choices(field="endings", answer_field="label").evaluate(evaluate_context(tiny_model, [swag], None, log))
    assert found.rows[0]["expected"] == " flies."
    fixed = Choices(choices=("yes", "no", "maybe"))
    found = fixed.evaluate(evaluate_context(tiny_model, [record("maybe", 3)], None, log))
    assert [answer["text"] for answer in found.rows[0]["choices"]] == ["yes", "no", "maybe"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (record("yes"), r"q\.jsonl:1: choices needs a list of two answers.*'choices'"),
        (record("yes", choices=["yes"]), "a list of two answers"),
        (record("yes", choices="yes or no"), "a list of two answers"),
        (record("perhaps", choices=YES_NO), r"right answer 'perhaps' is none of its choices.*answer_field"),
        (record(None, choices=YES_NO), "right answer None is none"),
    ],
)
def test_what_cannot_be_judged_is_named(sample: Sample, message: str, tiny_model: Any, log: RunLog):
    with pytest.raises(DataError, match=message):
        Choices().evaluate(evaluate_context(tiny_model, [sample], None, log))


def test_an_answer_without_a_token_has_no_probability(tiny_model: Any, log: RunLog):
    with pytest.raises(DataError, match="the answer '' holds no token"):
        Choices().evaluate(evaluate_context(tiny_model, [record("a", choices=["a", ""])], None, log))


def test_which_answer_is_meant():
    texts, labels = listed_answers({"text": ["1", "0"], "label": ["A", "B"]})
    assert place_of("0", texts, labels, by_place=True) == 1  # a text before a place
    assert place_of("A", texts, labels, by_place=False) == 0
    assert place_of(1, ["a", "b"], [], by_place=True) == 1
    assert place_of(1, ["a", "b"], [], by_place=False) is None
    assert place_of(7, ["a", "b"], [], by_place=True) is None
    assert place_of(True, ["True", "b"], [], by_place=True) is None
