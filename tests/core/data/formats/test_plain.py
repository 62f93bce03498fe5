"""Formats of texts without a template: what each reads and writes, and which of several answers is better."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmflow.components import DataFormat
from lmflow.data.formats.plain import TextOnly, TextToScoredTextList, TextToText, TextToTextList, compared
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError

Q, A, B = Message("user", "q"), Message("assistant", "a"), Message("assistant", "b")


def scored(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"input": "q", "output": [{"text": text, "score": score} for text, score in pairs]}


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"text": "t", "label": 0}, {"text_only"}),
        ({"text": "t", "prompt": "q"}, set()),
        ({"input": "q", "output": "a"}, {"text2text"}),
        ({"input": "q", "output": "a", "instruction": "i"}, set()),
        ({"input": "q", "output": ["a"]}, {"text_to_textlist"}),
        (scored(("a", 1)), {"text_to_scored_textlist"}),
        ({"input": "q"}, set()),
    ],
    ids=str,
)
def test_what_is_recognised_as_which(record: dict[str, Any], names: set[str]):
    kinds: list[type[DataFormat]] = [TextOnly, TextToText, TextToTextList, TextToScoredTextList]
    assert {kind.name for kind in kinds if kind.recognises(record)} == names


@pytest.mark.parametrize("label", [True, False])
def test_a_labelled_output_comes_back(label: bool):
    record = {"input": "q", "output": "a", "kto_tag": label}
    found = TextToText().sample(record, "f:1")
    assert (found.label, found.messages, found.rejected) == (label, (Q, A) if label else (Q,), () if label else (Q, A))
    assert TextToText().record(found) == record


def test_the_best_is_trained_and_preferred_to_the_worst():
    found = TextToScoredTextList().sample(scored(("a", 0.5), ("b", 2), ("c", -1), ("d", 1)), "f:1")
    assert (found.messages, found.rejected) == ((Q, B), (Q, Message("assistant", "c")))
    assert not found.templated
    nearest = TextToScoredTextList(against="next").sample(found.record, "f:1")
    assert (nearest.messages, nearest.rejected) == ((Q, B), (Q, Message("assistant", "d")))


@pytest.mark.parametrize("pairs", [[("a", 1)], [("a", 1), ("b", 1)], [("a", 1), ("a", 0)]], ids=str)
def test_what_differs_in_no_score_or_no_word_is_no_preference(pairs: list[tuple[str, float]]):
    for kind in (TextToScoredTextList(), TextToScoredTextList(against="next")):
        found = kind.sample(scored(*pairs), "f:1")
        assert (found.messages, found.rejected) == ((Q, A), ())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 3)), min_size=1), st.sampled_from(["worst", "next"]))
def test_the_better_of_two_has_the_higher_score(pairs: list[tuple[str, int]], against: str):
    answers = [Answer(text, float(score)) for text, score in pairs]
    best, other = compared(answers, against)
    scores = [answer.score for answer in answers]
    assert best is answers[scores.index(max(scores))], "the first of equals"
    worse = [answer for answer in answers if answer.score != best.score and answer.text != best.text]
    assert (other is None) == (not worse)
    if other is not None:
        assert other in worse
        assert other.score == (min if against == "worst" else max)(answer.score or 0.0 for answer in worse)


@pytest.mark.parametrize("kind", [TextToText(), TextToTextList()], ids=lambda kind: kind.name)
def test_a_question_is_not_written_as_an_output(kind: DataFormat):
    with pytest.raises(DataError, match=r"^f:1: it has no answer, which a record of an input and its output needs"):
        kind.record(Sample((Q,), source="f:1"))
    assert kind.record(Sample((Q, A), source="f:1"))["input"] == "q"
