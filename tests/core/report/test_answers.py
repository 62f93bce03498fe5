"""Two answers side by side: what differs is marked."""

from __future__ import annotations

from lmflow.report.answers import mark_difference


def test_words_only_one_answer_has_are_marked():
    before, after = mark_difference("sort the 6 0 8", "sort the 0 6 8")
    assert "<del>" in before
    assert "<ins>" in after
    assert before.startswith("sort the")
    assert after.startswith("sort the")


def test_answers_without_a_common_word_are_not_marked():
    assert mark_difference("a <b>", "x y z w") == ("a &lt;b&gt;", "x y z w")
