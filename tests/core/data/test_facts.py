"""What a turn says, and where a text says it."""

from __future__ import annotations

from typing import Any

import pytest

from lmflow.data.facts import Fact, call_facts, facts_of, leaves, locate, tool_facts
from lmflow.data.sample import Message


def missing(facts: list[Fact], text: str) -> list[str]:
    return sorted(fact.text for fact in locate(facts, text, 0, len(text)).missing)


def said(*texts: str) -> list[Fact]:
    return [Fact("the text", text) for text in texts]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hello", [("the text", "hello")]),
        (" \n", []),
        ("<think>\nwhy\n</think>\n\nso", [("the thought", "\nwhy\n"), ("the text", "\n\nso")]),
        ("<think>why</think>so", [("the thought", "why"), ("the text", "so")]),
        ("<think>\n\n</think>\n\nso", [("the text", "\n\nso")]),
        ("<image>what is it?", [("the text", "what is it?")]),
        ("use </think> here", [("the text", "use "), ("the text", " here")]),
    ],
)
def test_thoughts_stand_apart_and_what_is_empty_is_nothing(content: str, expected: list[Any]):
    assert [(fact.kind, fact.text) for fact in facts_of(Message("assistant", content))] == expected


def test_thoughts_beside_the_content_and_calls_are_facts_too():
    call = {"function": {"name": "add", "arguments": {"a": 1, "deep": {"b": [True, None, "x"]}, "none": None}}}
    turn = Message("assistant", "text", tool_calls=(call,), thinking="why")
    assert [fact.text for fact in facts_of(turn)] == ["why", "text", "add", "a", "1", "deep", "b", "true", "x"]
    assert str(next(call_facts(call["function"]))) == "the call of 'add'"


def test_tools_are_known_by_name():
    assert [str(fact) for fact in tool_facts([{"function": {"name": "add"}}])] == ["the tool 'add'"]


def test_numbers_of_any_kind_are_written():
    assert list(leaves({"a": 1.5, "b": [2, False]})) == ["a", "1.5", "b", "2", "false"]


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        ("two\n\nlines ", "x two lines y"),
        ("a\tb", 'x "a\\tb" y'),
        ("é ", '"\\u00e9"'),
        ("true", "f(a=True)"),
        ("it's", 'x "it\'s"'),
        ('say "no"', 'x \\"no\\" say \\"no\\"'),
    ],
)
def test_a_fact_is_found_however_it_is_written(fact: str, text: str):
    assert missing(said(fact), text) == []


@pytest.mark.parametrize(("facts", "text", "lost"), [(("a", "a"), "a b", ["a"]), (("ab", "b"), "ab", ["b"])])
def test_each_fact_has_a_place_of_its_own(facts: tuple[str, ...], text: str, lost: list[str]):
    assert missing(said(*facts), text) == lost


def test_where_the_facts_begin_and_end_and_only_there():
    found = locate(said("one", "two"), "zero one, two. one", 0, 14)
    assert (found.begin, found.end, found.missing) == (5, 13, ())
    assert [fact.text for fact in locate(said("zero"), "zero one", 1, 8).missing] == ["zero"]
    assert locate([], "text", 2, 4).end == 2


def test_a_long_fact_is_shown_short():
    assert str(Fact("the text", "word " * 50)).endswith("…'")
    assert len(str(Fact("the text", "word " * 50))) < 80
