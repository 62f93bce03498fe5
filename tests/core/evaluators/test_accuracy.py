"""Accuracy and exact match: what is asked, what is compared, what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from lmflow.components import GenerateRequest
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.evaluators.accuracy import Accuracy, ExactMatch
from lmflow.inference.hf import HuggingFace
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context


def record(question: str, answer: str | None, number: int = 1) -> Sample:
    turns = (
        (Message("user", question),) if answer is None else (Message("user", question), Message("assistant", answer))
    )
    return Sample(turns, True, {}, f"q.jsonl:{number}")


SUMS = [record("3+4?", "3 + 4 = 7\n#### 7", 1), record("1/2+1/2?", "#### 1", 2), record("5-9?", "#### -4", 3)]


def test_numbers(tiny_model: Any, log: RunLog, parrot: Callable[..., Any]) -> None:
    says = parrot(["The answer is 7.0", "I do not know", "5 - 9 = -4"])
    found = Accuracy(answer_type="gsm8k").evaluate(evaluate_context(tiny_model, SUMS, says, log))
    # two of three: 0.666…, standard error sqrt(2/3 * 1/3 / 3) = 0.2722
    assert found.metrics == {
        "accuracy": pytest.approx(2 / 3),
        "standard_error": pytest.approx(math.sqrt(2) / math.sqrt(27)),
        "correct": 2,
        "not_found": 1,
        "records": 3,
    }
    assert [row["correct"] for row in found.rows] == [True, False, True]
    assert [row["answer"] for row in found.rows] == ["7.0", None, "-4"]
    assert found.rows[0]["expected_answer"] == "7"
    assert found.rows[0]["source"] == "q.jsonl:1"


def test_sampling_and_prompt_structure(
    tiny_model: Any, log: RunLog, parrot: Callable[..., Any], asked: list[Any]
) -> None:
    evaluator = Accuracy(prompt_structure="Question: {input}\\nAnswer:", max_new_tokens=7, temperature=0.5, seed=3)
    found = evaluator.evaluate(evaluate_context(tiny_model, [record("who?", "me")], parrot(["me"]), log))
    [([prompt], sampling)] = asked
    assert "Question: who?\nAnswer:" in tiny_model.tokenizer.decode(prompt.ids)
    assert found.rows[0]["prompt"] == "Question: who?\nAnswer:"
    assert (sampling.temperature, sampling.max_new_tokens, sampling.seed, sampling.n) == (0.5, 7, 3, 1)


def test_braces_in_questions_are_text(tiny_model: Any, log: RunLog, parrot: Callable[..., Any]) -> None:
    found = Accuracy().evaluate(evaluate_context(tiny_model, [record("{x} {input}", "a")], parrot(["a"]), log))
    assert found.rows[0]["prompt"] == "{x} {input}"


def test_exact_match(tiny_model: Any, log: RunLog, parrot: Callable[..., Any]) -> None:
    records = [record("q", answer, n) for n, answer in enumerate(["Paris", "Paris", "paris", "Rome"])]
    says = ["Paris", " Paris\n", "Paris", "Paris."]
    exact = ExactMatch().evaluate(evaluate_context(tiny_model, records, parrot(says), log))
    assert [row["correct"] for row in exact.rows] == [True, True, False, False]
    assert exact.metrics["exact_match"] == 0.5
    loose = ExactMatch(normalise=True).evaluate(evaluate_context(tiny_model, records, parrot(says), log))
    assert [row["correct"] for row in loose.rows] == [True, True, True, False]


def test_the_models_own_answers_are_right(tiny_model: Any, log: RunLog) -> None:
    """Records whose answers are what the model says greedily: accuracy 1."""
    from lmflow.inference.types import Sampling

    questions = [record(text, None) for text in ("the fox", "a model", "to stop", "quick brown")]
    prompts = [tiny_model.encode_prompt(each) for each in questions]
    said = HuggingFace().generate(GenerateRequest(tiny_model, prompts, Sampling(temperature=0, max_new_tokens=8)))
    records = [record(q.messages[0].content, each[0].text) for q, each in zip(questions, said)]
    found = ExactMatch(max_new_tokens=8).evaluate(evaluate_context(tiny_model, records, HuggingFace(), log))
    assert found.metrics["exact_match"] == 1
    assert [row["completion"] for row in found.rows] == [each[0].text for each in said]


def test_what_is_refused(tiny_model: Any, log: RunLog, parrot: Callable[..., Any]) -> None:
    cases = [
        (Accuracy(), [record("q", None, 4)], "q.jsonl:4: accuracy compares with the record's own answer, and there is"),
        (ExactMatch(), [], "exact_match: there is no record"),
        (Accuracy(answer_type="number"), [record("q", "seven", 5)], "q.jsonl:5: its answer 'seven' holds no number"),
        (
            Accuracy(),
            [record("fox " * 400, "a", 6)],
            "q.jsonl:6: the prompt has .* tokens and the model's context is 256",
        ),
        (Accuracy(), [record(" ", "a", 7)], "q.jsonl:7: the prompt is empty"),
    ]
    for evaluator, records, message in cases:
        with pytest.raises(DataError, match=message):
            evaluator.evaluate(evaluate_context(tiny_model, records, parrot(["a"]), log))
    with pytest.raises(ValidationError, match="must say where the question goes"):
        Accuracy(prompt_structure="Answer:")
    with pytest.raises(ValidationError):
        Accuracy(answer_type="gsm9k")
