"""Formats of preferences: two answers, one of which is better, and answers that are wanted or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmflow.components import DataFormat
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.preferences import (
    HhRlhf,
    Kto,
    PairedConversation,
    PairedTextToText,
    Preference,
    after_prompt,
    shared_turns,
)
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

Write = Callable[[str, Iterable[Any]], str]
S, Q, A, B = (Message(*each) for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))
ASKED, SAID, OTHER = ({"role": turn.role, "content": turn.content} for turn in (Q, A, B))
SYSTEM = {"role": "system", "content": "s"}
ADD = {"type": "function", "function": {"name": "add"}}


OPENAI = {
    "input": {"messages": [SYSTEM, ASKED], "tools": [ADD]},
    "preferred_output": [SAID],
    "non_preferred_output": [OTHER],
}


def pair(*turns: Message, rejected: tuple[Message, ...] = (), **more: Any) -> Sample:
    return Sample(turns, source="f:1", rejected=rejected, **more)


def sides(kind: DataFormat, record: Any) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    found = kind.sample(record, "f:1")
    return found.messages, found.rejected


def written(kind: DataFormat, given: Sample) -> Any:
    return json.loads(json.dumps(kind.record(given), ensure_ascii=False))


# What is recognised as which


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"preference"}),
        ({"chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, {"preference"}),
        ({"chosen": "a", "rejected": "b"}, set()),
        ({"prompt": "q", "chosen": "a"}, set()),
        ({"conversations": [], "chosen": {}, "rejected": {}}, {"sharegpt"}),
        ({"chosen": {"messages": []}, "rejected": {"messages": []}}, {"paired_conversation"}),
        ({"chosen": {"messages": []}, "rejected": {}}, set()),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, {"hh"}),
        ({"chosen": "\n\nHuman: a"}, {"hh"}),
        ({"prompt": "q", "chosen": "\n\nHuman: a", "rejected": "b"}, {"preference"}),
        ({"prompt": "q", "completion": "a", "label": True}, {"kto"}),
        ({"prompt": "q", "response": "a", "kto_tag": "up"}, {"kto"}),
        ({"prompt": "q", "completion": "a", "label": ""}, {"prompt"}),
        ({"label": True}, set()),
        ({"prompt": "q", "positive": "a", "negative": "b"}, {"preference"}),
        ({"positive": [ASKED, SAID], "negative": [ASKED, OTHER]}, {"preference"}),
        ({"messages": [ASKED], "positive": SAID, "negative": OTHER}, {"preference"}),
        ({"question": "q", "response_j": "a", "response_k": "b"}, {"preference"}),
        ({"messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, {"preference"}),
        ({"prompt": "q", "chosen": {"messages": []}, "rejected": {"messages": []}}, {"paired_conversation"}),
    ],
    ids=str,
)
def test_a_record_is_of_one_format_at_most(record: dict[str, Any], names: set[str]):
    assert {each.name for each in FORMATS if each.recognises(record)} == names


def test_texts_without_a_template_are_read_by_name_alone():
    record = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}
    assert not PairedTextToText.recognises(record)
    found = PairedTextToText().sample(record, "f:1")
    assert (found.messages, found.rejected, found.templated) == ((Q, A), (Q, B), False)


# Preferences


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [SAID], "rejected": [OTHER]},
        {"prompt": "q", "chosen": [ASKED, SAID], "rejected": "b"},
        {"prompt": [ASKED], "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]},
        {"chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]},
        {"prompt": None, "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]},
        {"prompt": "q", "chosen": SAID, "rejected": OTHER},
        {"prompt": "q", "positive": "a", "negative": "b"},
        {"question": "q", "response_j": "a", "response_k": "b"},
        {"messages": [ASKED], "chosen": "a", "rejected": [OTHER]},
        {"messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER], "score_chosen": 8.0},
    ],
    ids=str,
)
def test_a_preference_in_each_form(record: dict[str, Any]):
    assert sides(Preference(), record) == ((Q, A), (Q, B))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "chosen: expected a list of turns, as there is no prompt, found text"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "chosen: expected text, found a number 3"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "rejected: expected a list of at least one turn"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt: expected text"),
        ({"prompt": "q", "chosen": "a"}, "rejected: expected text, it is missing"),
        ({"prompt": "q", "chosen": {"role": "x"}, "rejected": "b"}, r"chosen\[0\]\.role: expected one of"),
        ({"messages": [ASKED, OTHER], "chosen": "a", "rejected": "b"}, "messages: end with an answer"),
    ],
)
def test_a_preference_that_cannot_be_read(record: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        Preference().sample(record, "f:1")


@pytest.mark.parametrize(
    ("prompt", "turns", "expected"),
    [
        ((Q,), (A,), (Q, A)),
        ((Q,), (Q, A), (Q, A)),
        ((S, Q), (Q, A), (S, Q, A)),
        ((Q,), (S, Q, A), (S, Q, A)),
        ((S, Q), (S, Q, A), (S, Q, A)),
        ((), (Q, A), (Q, A)),
        ((Q, A, Q), (Q, A), (Q, A, Q, Q, A)),  # only the whole prompt is one that was repeated
    ],
)
def test_a_prompt_that_answers_repeat_stands_once(prompt: Any, turns: Any, expected: Any):
    assert after_prompt(prompt, turns) == expected


def test_what_both_begin_with_is_the_prompt():
    given = pair(S, Q, A, rejected=(S, Q, B), tools=(ADD,))
    made = written(Preference(), given)
    assert made == {"prompt": [SYSTEM, ASKED], "chosen": "a", "rejected": "b", "tools": [ADD]}
    assert sides(Preference(), made) == (given.messages, given.rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ((Q, A), (Q, B), 1),
        ((Q, A), (Q, A), 1),
        ((Q, A, Q, A), (Q, A), 1),
        ((A,), (B,), 0),
        ((Q, A, Q, A), (Q, A, Q, B), 3),
    ],
)
def test_each_side_keeps_a_turn_of_its_own(chosen: Any, rejected: Any, shared: int):
    assert shared_turns(pair(*chosen, rejected=rejected), "preference") == shared


@pytest.mark.parametrize("kind", [Preference(), PairedTextToText(), PairedConversation()], ids=lambda kind: kind.name)
def test_a_sample_without_a_rejected_answer_is_no_preference(kind: DataFormat):
    with pytest.raises(DataError, match=f"^f:1: it has no rejected answer, which {kind.name} needs"):
        kind.record(pair(Q, A))


# Two dialogues


def test_two_dialogues_with_their_own_system_texts():
    record = {
        "chosen": {"messages": [ASKED, SAID], "system": "s", "tools": [ADD]},
        "rejected": {"messages": [ASKED, OTHER], "tools": [ADD]},
    }
    found = PairedConversation().sample(record, "f:1")
    assert (found.messages, found.rejected, found.tools) == ((S, Q, A), (Q, B), (ADD,))
    made = written(PairedConversation(), found)
    assert sides(PairedConversation(), made) == (found.messages, found.rejected)
    assert made["rejected"]["tools"] == [ADD]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": {"messages": [ASKED]}}, "f:1: rejected: expected an object with messages, it is missing"),
        ({"chosen": "a", "rejected": {}}, "f:1: chosen: expected an object with messages, found text"),
        ({"chosen": {"messages": []}, "rejected": {}}, "f:1: chosen: messages: expected a list of at least one turn"),
        (
            {"chosen": {"messages": [ASKED], "tools": [ADD]}, "rejected": {"messages": [ASKED]}},
            "f:1: rejected.tools: they are not those of chosen",
        ),
    ],
)
def test_two_dialogues_that_cannot_be_read(record: Any, message: str):
    with pytest.raises(DataError) as caught:
        PairedConversation().sample(record, "f:1")
    assert str(caught.value).startswith(message)


# Answers that are wanted or not


def test_unwanted_answers_are_not_learnt(tmp_path: Path, write: Write):
    rows = [{"prompt": "q", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    write("a.jsonl", rows)
    good, bad = read_samples(DataOptions(path=str(tmp_path / "a.jsonl")), Formats(FORMATS))
    assert [turn.content for turn in good.messages] == ["q", "good"]
    assert [turn.content for turn in bad.messages] == ["q"]
    assert [turn.content for turn in bad.rejected] == ["q", "bad"]
    assert (good.label, bad.label) == (True, False)


def test_an_unwanted_dialogue_teaches_nothing_but_its_prompt():
    record = {"messages": [ASKED, SAID, ASKED, OTHER], "label": False}
    found = Kto().sample(record, "f:1")
    assert (found.messages, found.rejected, found.label) == ((Q, A, Q), (Q, A, Q, B), False)
    assert written(Kto(), found) == {"prompt": [ASKED, SAID, ASKED], "completion": "b", "label": False}


@pytest.mark.parametrize("label", [True, False])
def test_a_labelled_answer_comes_back(label: bool):
    record = {"prompt": "q", "completion": "a", "label": label, "tools": [ADD]}
    assert written(Kto(), Kto().sample(record, "f:1")) == record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "q", "completion": "a"}, "label: expected true or false, it is missing"),
        ({"prompt": "q", "completion": "a", "label": 2}, "label: expected true or false, .* found a number 2"),
        ({"prompt": "q", "completion": "Good", "label": "good"}, "label: is the answer itself"),
        ({"prompt": "q", "label": True}, "completion: expected text, it is missing"),
    ],
)
def test_a_labelled_answer_that_cannot_be_read(record: Any, message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        Kto().sample(record, "f:1")


@pytest.mark.parametrize(
    "said",
    [
        {"messages": [ASKED, SAID]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASKED], "response": [SAID]},
        {"prompt": "q", "answer": "a"},
    ],
    ids=lambda said: "+".join(said),
)
@pytest.mark.parametrize(
    "label", [{"label": False}, {"kto_tag": False}, {"label": "bad"}, {"kto_tag": 0, "label": None}]
)
def test_a_labelled_answer_in_each_form(said: dict[str, Any], label: dict[str, Any]):
    found = Kto().sample({**said, **label}, "f:1")
    assert (found.label, found.messages, found.rejected) == (False, (Q,), (Q, A))


def test_without_a_label_there_is_nothing_to_write():
    with pytest.raises(DataError, match=r"^f:1: it has no label, which kto needs"):
        Kto().record(pair(Q, A))


# HH-RLHF


def test_blank_lines_and_marks_within_a_turn_of_hh():
    """Only a mark after a blank line begins a turn; a turn may hold blank lines of its own."""
    text = "\n\nHuman: one\n\ntwo Human: three\nHuman: four\n\nAssistant: 数据\n\n"
    messages, rejected = sides(HhRlhf(), {"chosen": text})
    assert [(turn.role, turn.content) for turn in messages] == [
        ("user", "one\n\ntwo Human: three\nHuman: four"),
        ("assistant", "数据"),
    ]
    assert rejected == ()


@pytest.mark.parametrize("text", ["", "Human: q", "\n\n", "Hello\n\nHuman: q", "\n\nHuman q"])
def test_a_text_without_marks_is_no_dialogue_of_hh(text: str):
    with pytest.raises(DataError, match=r"^f:1: chosen: expected text that begins with a blank line and 'Human:'"):
        HhRlhf().sample({"chosen": text}, "f:1")


def test_hh_holds_two_speakers():
    made = written(HhRlhf(), pair(Q, A, rejected=(Q, B)))
    assert made == {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    assert written(HhRlhf(), pair(Q, A)).keys() == {"chosen"}
    with pytest.raises(DataError, match=r"^f:1: hh holds turns of user and assistant, not system, tool"):
        HhRlhf().record(pair(S, Q, Message("tool", "3"), A))


# Whatever is said


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
@pytest.mark.parametrize("kind", [Preference(), PairedConversation(), PairedTextToText()], ids=lambda kind: kind.name)
def test_every_pair_of_answers_comes_back(kind: DataFormat, question: str, good: str, bad: str):
    prompt = Message("user", question)
    given = pair(prompt, Message("assistant", good), rejected=(prompt, Message("assistant", bad)))
    assert sides(kind, written(kind, given)) == (given.messages, given.rejected)


def test_preferences_of_openai():
    assert Preference.recognises(OPENAI)
    sample = Preference().sample(OPENAI, "f:1")
    assert (sample.messages, sample.rejected, sample.tools) == ((S, Q, A), (S, Q, B), (ADD,))
    with pytest.raises(DataError, match=r"f:1: input: messages: expected a list of at least one turn, found nothing"):
        Preference().sample({**OPENAI, "input": {"messages": None}}, "f:1")


def test_a_record_without_its_label_is_bad_among_those_that_have_one(write: Write):
    judged, open_ = {"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b"}
    for rows in ([judged, {**open_, "label": None}], [open_, judged]):
        with pytest.raises(DataError, match=r"label: expected true or false, .*--data\.ignore label"):
            read_samples(DataOptions(path=write("a.jsonl", rows)), Formats(FORMATS))
        options = DataOptions(path=write("a.jsonl", rows), on_bad_record="skip")
        assert [sample.label for sample in read_samples(options, Formats(FORMATS))] == [True]
    unlabelled = read_samples(DataOptions(path=write("a.jsonl", [{**open_, "label": None}])), Formats(FORMATS))
    assert [sample.messages[-1].content for sample in unlabelled] == ["b"], "a column of nulls is none"
