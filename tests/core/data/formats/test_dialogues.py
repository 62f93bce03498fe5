"""Formats of dialogues: what each reads, writes, and cannot hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmflow.components import DataFormat
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.formats.dialogues import (
    Alpaca,
    Conversation,
    Messages,
    Prompts,
    ShareGpt,
    as_message,
    calls_as_text,
    completion_as_field,
    completion_of,
    prompt_as_field,
    prompt_of,
    without_system,
)
from lmflow.data.sample import Answer, Message, Sample
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

Write = Callable[[str, Iterable[Any]], str]
S, Q, A, B = (Message(*each) for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("assistant", "b")))
ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
FUNCTION = {"name": "add", "arguments": {"a": 1}}
CALL = Message("assistant", "", tool_calls=({"type": "function", "function": FUNCTION},))
RESULT = Message("tool", "3", name="add", tool_call_id="c1")
ADD = {"type": "function", "function": {"name": "add"}}


def sample(*turns: Message, **more: Any) -> Sample:
    return Sample(turns, source="f:1", **more)


def read(kind: DataFormat, record: Any) -> tuple[Message, ...]:
    return kind.sample(record, "f:1").messages


def written(kind: DataFormat, given: Sample) -> Any:
    """What the format writes, after it has been JSON."""
    return json.loads(json.dumps(kind.record(given), ensure_ascii=False))


# What is recognised as which


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"messages": [ASKED]}, {"messages"}),
        ({"messages": [ASKED], "system": None}, {"conversation"}),
        ({"messages": [ASKED], "conversation_id": 0}, {"conversation"}),
        ({"messages": [ASKED], "label": True}, {"kto"}),
        ({"messages": [ASKED], "label": "sports"}, {"kto"}),
        ({"messages": [ASKED], "label": None}, {"messages"}),
        ({"messages": [ASKED], "system": "s", "label": True}, {"kto"}),
        ({"prompt": "q", "prompt_id": "1", "messages": [ASKED, SAID]}, {"messages"}),
        ({"prompt": [ASKED], "messages": [ASKED, SAID]}, {"messages"}),
        ({"prompt": "other", "messages": [ASKED, SAID]}, {"messages", "prompt"}),
        ({"prompt": "q", "completions": []}, {"completions"}),
        ({"prompt": "q", "messages": [ASKED], "completions": [{"text": "a"}]}, {"completions"}),
        ({"messages": [ASKED, SAID], "rejected_response": "b"}, {"messages"}),
        ({"messages": [ASKED, SAID], "chosen": "a", "rejected": "b"}, {"preference"}),
        ({"conversations": []}, {"sharegpt"}),
        ({"conversations": [], "label": None}, {"sharegpt"}),
        ({"conversations": [], "kto_tag": False}, {"kto"}),
        ({"prompt": "q", "label": True}, {"prompt"}),
        ({"prompt": "q", "answer": "a", "label": "good"}, {"kto"}),
        ({"instruction": "i", "output": "o"}, {"alpaca"}),
        ({"instruction": "i"}, set()),
        ({"prompt": "q"}, {"prompt"}),
        ({"prompt": "q", "chosen": "a"}, set()),
        ({"prompt": "q", "completion": "a", "label": 0}, {"kto"}),
        ({}, set()),
    ],
    ids=lambda value: str(sorted(value)),  # sets have no order of their own, and workers must agree on names
)
def test_a_record_is_of_one_format_at_most(record: dict[str, Any], names: set[str]):
    assert {each.name for each in FORMATS if each.recognises(record)} == names


# Conversation and messages


def test_a_system_text_in_some_of_the_records(tmp_path: Path, write: Write):
    turn = {"messages": [{"role": "user", "content": "q"}]}
    write("a.jsonl", [turn, {**turn, "system": "s"}])
    first, second = read_samples(DataOptions(path=str(tmp_path / "a.jsonl")), Formats(FORMATS))
    assert ([t.role for t in first.messages], [t.role for t in second.messages]) == (["user"], ["system", "user"])


def test_a_conversation_is_written_in_lmflow_s_own_words():
    given = sample(S, Q, CALL, RESULT, A, tools=(ADD,))
    assert written(Conversation(), given) == {
        "system": "s",
        "tools": [json.dumps(ADD)],
        "messages": [
            ASKED,
            {"role": "function", "content": json.dumps(FUNCTION)},
            {"role": "observation", "content": "3"},
            SAID,
        ],
    }
    assert written(Conversation(), sample(Q))["conversation_id"] == "f:1", "without a system text it has a number"


def test_messages_keep_names_and_ids():
    given = sample(S, Q, CALL, RESULT, A, tools=(ADD,))
    made = written(Messages(), given)
    assert made["messages"][3] == {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}
    assert Messages().sample(made, "f:1").messages == given.messages
    assert Messages().sample(made, "f:1").tools == given.tools
    assert written(Messages(), sample(Q)) == {"messages": [ASKED]}


def test_turns_as_openai_has_them():
    assert as_message(Q) == ASKED
    assert as_message(CALL) == {"role": "assistant", "content": "", "tool_calls": list(CALL.tool_calls)}


def test_what_stands_beside_an_answer_is_written_and_read_again():
    given = sample(Q, replace(B, is_target=False), Q, replace(A, thinking="hm"))
    made = written(Messages(), given)
    assert made["messages"][1::2] == [
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ]
    assert read(Messages(), made) == given.messages
    assert read(Prompts(), written(Prompts(), given)) == given.messages


# Answers that are not preferred, as ms-swift has them


@pytest.mark.parametrize(
    "more",
    [
        {"rejected_response": "b"},
        {"rejected_response": [{"role": "assistant", "content": "b"}]},
        {"rejected_messages": [ASKED, {"role": "assistant", "content": "b"}]},
    ],
)
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_an_answer_that_is_not_preferred_beside_the_dialogue(field: str, more: Any):
    kind = Messages() if field == "messages" else ShareGpt()
    found = kind.sample({field: [ASKED, SAID], "system_prompt": "s", **more}, "f:1")
    assert (found.messages, found.rejected) == ((S, Q, A), (S, Q, B))


def test_another_answer_needs_one_in_whose_place_it_stands():
    record = {"messages": [ASKED], "rejected_response": "b", "rejected_messages": None}
    with pytest.raises(DataError, match=r"^f:1: rejected_response: .* the last turn is of the user"):
        Messages().sample(record, "f:1")


# ShareGPT


def test_conversations_of_roles_and_contents():
    assert read(ShareGpt(), {"conversations": [ASKED, SAID]}) == (Q, A)


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_a_rejected_answer_stands_in_the_place_of_the_chosen_one():
    chosen, rejected = ({"from": "gpt", "value": value} for value in "ab")
    record = {"system": "s", "conversations": talk("q"), "chosen": chosen, "rejected": rejected}
    found = ShareGpt().sample(record, "f:1")
    assert (found.messages, found.rejected) == ((S, Q, A), (S, Q, B))
    assert written(ShareGpt(), found) == record
    only = ShareGpt().sample({"conversations": talk("q"), "chosen": chosen}, "f:1")
    assert (only.messages, only.rejected) == ((Q, A), ())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": talk("q"), "chosen": "a"}, r"chosen\[0\]: expected an object with from and value"),
        ({"conversations": talk("q"), "rejected": {"from": "gpt"}}, r"rejected\[0\]\.value: expected text"),
        ({"conversations": talk("q"), "chosen": None}, r"chosen\[0\]: expected an object"),
        ({"conversations": {}}, "conversations: expected a list of at least one turn"),
    ],
)
def test_a_dialogue_of_sharegpt_that_cannot_be_read(record: Any, message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        ShareGpt().sample(record, "f:1")


def test_sharegpt_holds_preferences_of_the_last_turn_alone():
    with pytest.raises(DataError, match=r"^f:1: sharegpt holds preferences that differ in the last turn alone"):
        ShareGpt().record(sample(Q, A, Q, A, rejected=(Q, B, Q, B)))


def test_calls_in_sharegpt_are_texts_of_their_own_speaker():
    given = sample(Q, CALL, Message("tool", "3"), A, tools=(ADD,))
    made = written(ShareGpt(), given)
    assert [turn["from"] for turn in made["conversations"]] == ["human", "function_call", "observation", "gpt"]
    again = ShareGpt().sample(made, "f:1")
    assert (again.messages, again.tools) == (given.messages, given.tools)


# Alpaca


@pytest.mark.parametrize(
    ("more", "question"),
    [
        ({}, "do"),
        ({"input": ""}, "do"),
        ({"input": None}, "do"),
        ({"input": "数据"}, "do\n\n数据"),
        ({"input": "\n"}, "do\n\n\n"),
    ],
)
def test_an_input_follows_its_instruction(more: dict[str, Any], question: str):
    assert read(Alpaca(), {"instruction": "do", "output": "done", **more})[0].content == question


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input": 3}, "input: expected text, found a number 3"),
        ({"output": None}, "output: expected text, found nothing"),
        ({"history": {"a": "b"}}, r"history: expected a list of pairs \[question, answer\], found an object"),
        ({"history": [["a", "b"], ["c"]]}, r"history\[1\]: expected a pair of texts"),
        ({"history": [["a", 3]]}, r"history\[0\]: expected a pair of texts"),
    ],
)
def test_an_instruction_that_cannot_be_read(more: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"^f:1: {message}"):
        Alpaca().sample({"instruction": "do", "output": "done", **more}, "f:1")


@pytest.mark.parametrize("turns", [(), (Q,), (A, Q), (Q, A, Q), (Q, RESULT, A), (Q, S, A)])
def test_alpaca_holds_questions_and_answers_in_turn(turns: tuple[Message, ...]):
    with pytest.raises(DataError, match=r"^f:1: alpaca holds questions and answers in turn, not"):
        Alpaca().record(sample(*turns))


def test_earlier_turns_are_the_history():
    record = {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]}
    assert written(Alpaca(), Alpaca().sample(record, "f:1")) == record


# Prompts


@pytest.mark.parametrize("field", ["completion", "response", "answer"])
def test_an_answer_by_any_of_its_names(field: str):
    assert read(Prompts(), {"prompt": "q", field: "a"}) == (Q, A)
    assert read(Prompts(), {"prompt": "q", field: [SAID]}) == (Q, A)
    assert read(Prompts(), {"prompt": "q", field: None}) == (Q,)


def test_of_several_answers_the_first_name_counts():
    assert read(Prompts(), {"prompt": "q", "answer": "b", "completion": "a"}) == (Q, A)


def test_a_prompt_that_ends_with_an_answer_gets_no_second_one():
    assert read(Prompts(), {"prompt": [ASKED, SAID], "answer": "the reward's"}) == (Q, A)


def test_a_prompt_is_written_as_it_is_shortest():
    assert written(Prompts(), sample(Q, A)) == {"prompt": "q", "completion": "a"}
    assert written(Prompts(), sample(Q)) == {"prompt": "q"}
    assert written(Prompts(), sample(S, Q, CALL)) == {
        "prompt": [{"role": "system", "content": "s"}, ASKED],
        "completion": [as_message(CALL)],
    }


def test_fields_of_prompts_and_completions_come_back():
    for prompt in ((Q,), (S, Q), (A,), (Q, A, Q)):
        assert prompt_of({"prompt": prompt_as_field(prompt)}, "f:1") == prompt
    for answer in ((A,), (CALL,), (A, Q, B)):
        assert completion_of({"x": completion_as_field(answer)}, "x", "f:1") == answer


# Calls as texts, and the system's turn


def test_calls_are_texts_that_are_read_as_calls_again():
    assert json.loads(calls_as_text(CALL)) == FUNCTION
    assert json.loads(calls_as_text(replace(CALL, tool_calls=CALL.tool_calls * 2))) == [FUNCTION, FUNCTION]


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((S, Q), ("s", (Q,))),
        ((Q, S), (None, (Q, S))),
        ((), (None, ())),
        ((Message("system", ""), Q), (None, (Message("system", ""), Q))),
    ],
)
def test_a_system_text_stands_apart_where_it_is_first_and_says_something(turns: Any, expected: Any):
    assert without_system(sample(*turns)) == expected


# Whatever is said


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.none() | TEXTS.filter(bool))
@pytest.mark.parametrize(
    "kind", [Conversation(), Messages(), ShareGpt(), Alpaca(), Prompts()], ids=lambda kind: kind.name
)
def test_every_dialogue_of_two_comes_back(kind: DataFormat, pairs: list[tuple[str, str]], system: str | None):
    turns = [turn for question, answer in pairs for turn in (Message("user", question), Message("assistant", answer))]
    given = sample(*([Message("system", system)] if system else []), *turns)
    assert kind.sample(written(kind, given), "f:1").messages == given.messages


# Answers that are calls


def offering(answer: Any, **more: Any) -> Any:
    return {"prompt": "q", "tools": [ADD], "answer": answer, **more}


@pytest.mark.parametrize("answer", [[FUNCTION], json.dumps([FUNCTION]), json.dumps(FUNCTION)])
def test_an_answer_may_be_calls_of_the_tools_offered(answer: Any):
    found = Prompts().sample(offering(answer), "f:1")
    assert found.messages == (Q, CALL)
    assert read(Prompts(), written(Prompts(), found)) == found.messages


@pytest.mark.parametrize(
    ("record", "content"),
    [
        ({"prompt": "q", "answer": json.dumps(FUNCTION)}, json.dumps(FUNCTION)),
        (offering('{"name": "sub"}'), '{"name": "sub"}'),
        (offering("add(1)"), "add(1)"),
    ],
    ids=["nothing offered", "another tool", "no JSON"],
)
def test_other_answers_stay_texts(record: Any, content: str):
    assert read(Prompts(), record)[-1] == Message("assistant", content)


def test_a_text_that_could_be_a_call_is_written_as_a_turn():
    given = sample(Q, Message("assistant", json.dumps(FUNCTION)), tools=(ADD,))
    assert read(Prompts(), written(Prompts(), given)) == given.messages


# Labels of instructions


@pytest.mark.parametrize("label", [True, False])
def test_a_labelled_instruction_comes_back(label: bool):
    record = {"instruction": "q", "input": "", "output": "a", "kto_tag": label}
    found = Alpaca().sample(record, "f:1")
    assert (found.label, found.messages, found.rejected) == (label, (Q, A) if label else (Q,), () if label else (Q, A))
    assert written(Alpaca(), found) == record


def test_of_several_answers_the_first_is_the_one():
    sample = Prompts().sample({"prompt": "q", "answer": ["four", 4]}, "f:1")
    assert sample.messages[-1] == Message("assistant", "four")
    assert sample.answers == (Answer("four"), Answer("4"))
    again = Prompts().sample(Prompts().record(sample), "f:1")
    assert (again.messages, again.answers) == (sample.messages, sample.answers)
    assert Prompts().sample({"prompt": "q", "answer": ["four"]}, "f:1").answers == ()


def test_a_refusal_is_what_the_assistant_says():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "refusal": "I cannot."}]
    assert Messages().sample({"messages": turns}, "f:1").messages[-1] == Message("assistant", "I cannot.")
    turns[1]["content"] = [{"type": "refusal", "refusal": "No."}]
    turns[1]["refusal"] = None
    assert Messages().sample({"messages": turns}, "f:1").messages[-1] == Message("assistant", "No.")
    turns[1] |= {"content": "Yes.", "refusal": "I cannot."}
    with pytest.raises(
        DataError, match=r"messages\[1\]\.refusal: stands beside content, .*--data\.ignore messages\.refusal"
    ):
        Messages().sample({"messages": turns}, "f:1")


def test_a_tool_of_another_type_is_not_read_as_a_function():
    record = {"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "custom", "function": {"name": "f"}}]}
    with pytest.raises(DataError, match=r"tools\[0\]\.type: expected function, found text \"custom\""):
        Messages().sample(record, "f:1")
