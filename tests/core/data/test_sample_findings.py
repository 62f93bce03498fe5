"""What is wrong with samples before they are tokens: their turns, and what occurs twice."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from lmflow.data.findings import Findings
from lmflow.data.sample import Answer, Message, Sample
from lmflow.data.sample_findings import (
    MANY_DUPLICATES,
    digests_of,
    empty_turns,
    find_in_samples,
    turn_findings,
)

Q, A = Message("user", "q"), Message("assistant", "a")
ADD = {"type": "function", "function": {"name": "add"}}


def asked(text: str, answer: str = "a", source: str | None = None, **fields: Any) -> Sample:
    return Sample((Message("user", text), Message("assistant", answer)), source=source or f"s:{text}", **fields)


def find(train: list[Sample], heldout: list[Sample] | None = None) -> dict[str, list[str]]:
    findings = Findings(kept=None)
    find_in_samples(train, heldout or [], findings)
    return {kind: [f"{each.source} {each.detail}" for each in findings.examples_of(kind)] for kind in findings.counts}


# Turns


@pytest.mark.parametrize(
    ("chosen", "rejected", "detail"),
    [
        ([Q, A], [Q, Message("assistant", "b")], None),
        ([Q, A, Q, A], [Q, Message("assistant", "b"), Message("user", "why?"), A], None),  # it differs after an answer
        ([Q, A], [Message("user", "r"), A], "the dialogues differ first in turn 1, which is the user's"),
        ([Message("system", "s"), Q, A], [Q, A], "the dialogues differ first in turn 1, which is the system's"),
        ([Q, A], [Q, A, Q, A], "the dialogues differ first in turn 3, which is the user's"),
    ],
)
def test_answers_to_different_prompts_are_no_preference(chosen: Any, rejected: Any, detail: str | None):
    found = find([Sample(tuple(chosen), source="f:1", rejected=tuple(rejected))])
    assert found.get("other_prompt") == (detail and [f"f:1 {detail}"])


def test_the_dialogue_that_an_unwanted_label_is_about_is_no_other_prompt():
    assert find([Sample((Q,), source="f:1", rejected=(Q, A), label=False)]) == {}


@pytest.mark.parametrize(
    ("content", "is_inside"),
    [
        ("<think>why</think> a", False),
        (" \n<think>why</think> a", False),
        ("Say <think> first.", False),
        ("Let me see. <think>why</think> a", True),
        ("<think>why</think> a <think>how</think> b", True),
    ],
)
def test_a_thought_behind_other_text_is_told_of(content: str, is_inside: bool):
    found = find([asked("q", content)])
    assert ("inner_thought" in found) is is_inside
    assert "inner_thought" not in find([asked(content, "a")]), "what others say is theirs"


def test_a_thought_in_the_content_beside_another_is_told_of():
    turns = (Q, Message("assistant", "<think>b</think>c", thinking="a"))
    assert [*find([Sample(turns, source="f:1")])] == ["inner_thought"]


@pytest.mark.parametrize(
    ("roles", "details"),
    [
        ("user assistant user assistant", []),
        ("system user assistant", []),
        ("user assistant tool tool assistant", []),
        ("user", []),
        ("user user", ["role_order: two turns of user in a row"]),
        ("user assistant tool", ["unanswered: the last turn is the tool's; nothing answers it"]),
        ("assistant", ["role_order: the dialogue begins with assistant"]),
        (
            "user system assistant system",
            ["role_order: turn 2 is the system's, which comes first or not at all"],
        ),
        ("user user user assistant assistant", ["role_order: two turns of user in a row"]),  # once a sample
        ("user assistant user", ["unanswered: the last turn is the user's; nothing answers it"]),
    ],
)
def test_roles_in_an_odd_order(roles: str, details: list[str]):
    turns = tuple(Message(role, "x") for role in roles.split())
    assert [f"{kind}: {detail}" for kind, detail in turn_findings(Sample(turns))] == details
    assert list(turn_findings(Sample(turns, templated=False))) == [], "texts that are put together have no order"


def test_a_turn_is_empty_that_says_thinks_shows_and_calls_nothing():
    call = Message("assistant", "", tool_calls=({"function": {"name": "add"}},))
    thought = Message("assistant", "", thinking="hm")
    turns = [Message("user", "\n "), Message("user", "", images=("a.jpg",)), call, thought, A]
    assert list(empty_turns(turns)) == ["1 (user)"]


def test_preferences_that_show_nothing():
    same = Sample((Q, A), rejected=(Q, A), source="s:1")
    empty = Sample((Q, A), rejected=(Q, Message("assistant", " ")), source="s:2")
    assert find([same, empty]) == {
        "same_answers": ["s:1 chosen and rejected are the same"],
        "empty_turn": ["s:2 rejected turn 2 (assistant)"],
    }


# The same again


def test_what_two_samples_say_is_compared_whatever_they_were_read_from():
    one, other = (Sample((Q, A), record={"x": i}, source=f"f:{i}") for i in range(2))
    assert digests_of(one) == digests_of(other)
    apart = [
        Sample((Q,)),
        Sample((Q, A), rejected=(Q,)),
        Sample((Q, A), tools=(ADD,)),
        Sample((Q, A), label=True),
        Sample((Q, A), answers=(Answer("a"),)),
        Sample((Q, Message("assistant", "\ud83d"))),
        Sample((Q, Message("assistant", "a", thinking="b"))),
        Sample((Q, Message("assistant", "a", is_target=False))),
    ]
    assert len({digests_of(each)[0] for each in (one, *apart)}) == 9
    assert digests_of(one)[1] == digests_of(Sample((Q, Message("assistant", "other")), label=False))[1]
    assert digests_of(one)[1] != digests_of(Sample((Q, A), tools=(ADD,)))[1]


def test_every_field_of_a_turn_is_compared():
    """A field that turns get later on must not go missing in the digest."""
    changes = {"images": ("x",), "tool_calls": ({"a": 1},), "is_target": False}
    for each in dataclasses.fields(Message):
        other = dataclasses.replace(A, **{each.name: changes.get(each.name, "other")})
        assert digests_of(Sample((Q, A, other)))[0] != digests_of(Sample((Q, A, A)))[0], each.name


def test_samples_that_occur_before():
    samples = [asked("a", source="f:1"), asked("b", source="f:2"), asked("a", source="f:3"), asked("a", source="g:1")]
    assert find(samples) == {"duplicate": ["f:3 the same as f:1", "g:1 the same as f:1"]}


def test_a_sample_that_a_mix_repeats_is_one_sample():
    samples = [asked("a"), asked("b"), asked("a"), asked("b"), asked("a", source="other")]
    assert find(samples) == {"duplicate": ["other the same as s:a"]}


@pytest.mark.parametrize(("repeated", "severity"), [(10, "note"), (11, "warning")])
def test_only_many_duplicates_are_worth_a_warning(repeated: int, severity: str):
    samples = [asked(str(number)) for number in range(100 - repeated)]
    samples += [asked(str(number), source=f"again:{number}") for number in range(repeated)]
    findings = Findings()
    find_in_samples(samples, [], findings)
    assert findings.counts == {"duplicate": repeated}
    assert findings.severity("duplicate") == severity
    assert MANY_DUPLICATES == 0.1


def test_held_out_samples_that_are_trained_on():
    train = [asked("a"), asked("b"), Sample((Message("assistant", "text"),), False, source="s:t")]
    heldout = [
        asked("a", source="h:1"),
        asked("b", "other", source="h:2"),
        asked("c", source="h:3"),
        Sample((Message("assistant", "another"),), False, source="h:4"),
        Sample((Message("assistant", "text"),), False, source="h:5"),
    ]
    assert find(train, heldout) == {
        "leak": ["h:1 the same as s:a", "h:5 the same as s:t"],
        "shared_prompt": ["h:2 the prompt of s:b"],
    }


def test_a_text_alone_has_no_prompt_to_share():
    first, second = (Sample((Message("assistant", text),), False, source=text) for text in ("one", "two"))
    assert find([first], [second]) == {}


def test_as_comparing_each_with_each_finds():
    draw = random.Random(0)
    for _ in range(30):
        train = [asked(draw.choice("abcdef"), draw.choice("xy"), source=f"t:{i}") for i in range(draw.randint(0, 12))]
        heldout = [asked(draw.choice("abcdef"), draw.choice("xy"), source=f"h:{i}") for i in range(draw.randint(0, 6))]
        found = find(train, heldout)
        said = [sample.messages for sample in train]
        expected = [f"t:{i} the same as t:{said.index(each)}" for i, each in enumerate(said) if each in said[:i]]
        assert found.get("duplicate", []) == expected
        leaks = [
            f"{each.source} the same as t:{said.index(each.messages)}" for each in heldout if each.messages in said
        ]
        assert found.get("leak", []) == leaks
