"""Dialogues as text: where answers are, and what is said of templates that leave something out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmflow.data.rendering import (
    Rendering,
    answer_starts,
    as_dict,
    has_marks,
    refused,
    render,
    renderings,
    template_for,
)
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

S, Q, A, R, B = (
    Message(*each)
    for each in (("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "数据"))
)
CALL = Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},))
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }};"
    "{% endgeneration %}{% else %}{{ m['content'] }};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
FORGETTING = (  # earlier answers are written otherwise than the last one
    "{% for m in messages %}{{ m['role'] }}:{% if not loop.last and m['role'] == 'assistant' %}…;"
    "{% else %}{{ m['content'] }};{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)

With = Callable[[Any], Any]


@pytest.fixture
def with_template(make_tokenizer: Callable[..., Any]) -> With:
    return lambda template: make_tokenizer(chat_template=template)


def said(*turns: Message, **more: Any) -> Sample:
    return Sample(turns, source="f:3", **more)


def answers(rendering: Rendering) -> list[str]:
    return [rendering.text[start:end] for start, end in rendering.spans]


# Where answers are


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_answers_stand_in_the_text_with_what_ends_them(template: str, with_template: With):
    [found] = renderings(with_template(template), said(S, Q, A, R, B))
    assert found.text == "system:s;user:q;assistant:a;user:r;assistant:数据;"
    assert answers(found) == ["a;", "数据;"]
    assert found.marked is (template is MARKED)
    assert found.answers == (() if found.marked else ("a", "数据"))


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("turns", [(Q,), (S, Q), (S,)])
def test_a_dialogue_without_an_answer_has_none(template: str, turns: tuple[Message, ...], with_template: With):
    [found] = renderings(with_template(template), said(*turns))
    assert found.spans == ()
    assert "q" in found.text or turns == (S,)


def test_a_template_that_rewrites_earlier_turns_gives_a_text_for_each_answer(with_template: With):
    found = renderings(with_template(FORGETTING), said(Q, A, R, B))
    assert [each.text for each in found] == ["user:q;assistant:a;", "user:q;assistant:…;user:r;assistant:数据;"]
    assert [answers(each) for each in found] == [["a;"], ["数据;"]]
    assert [len(each.sample.messages) for each in found] == [2, 4]
    assert [each.answers for each in found] == [("a",), ("数据",)]


def test_marks_that_forget_earlier_turns_give_a_text_for_each_answer(with_template: With):
    template = MARKED.replace(
        "{{ m['content'] }};{% endgeneration %}",
        "{% if loop.last %}{{ m['content'] }}{% else %}…{% endif %};{% endgeneration %}",
    )
    assert template != MARKED
    found = renderings(with_template(template), said(Q, A, R, B))
    assert [answers(each) for each in found] == [["a;"], ["数据;"]]


def test_an_answer_that_begins_nowhere_is_an_error(with_template: With):
    """The template writes something before the answer that its prompt does not have."""
    template = PLAIN.replace("{{ m['role'] }}:", "{{ '<' if m['role'] == 'assistant' }}{{ m['role'] }}:")
    with pytest.raises(
        DataError, match=r"^f:3: .* no clear place where answer 2 begins\. Choose a template with --data\.tem"
    ):
        renderings(with_template(template), said(Q, A))


def test_an_empty_answer_has_its_end(with_template: With):
    [found] = renderings(with_template(PLAIN), said(Q, Message("assistant", "")))
    assert answers(found) == [";"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_earlier_answers_of_a_prompt(template: str, with_template: With):
    tokenizer, sample = with_template(template), said(Q, A, R)
    text = render(tokenizer, sample, sample.messages, prompt=True)
    assert text == "user:q;assistant:a;user:r;assistant:"
    assert [text[start:][:2] for start in answer_starts(tokenizer, sample, text)] == ["a;"]
    assert answer_starts(tokenizer, said(Q), text) == []


# Turns as templates take them


def test_a_turn_has_what_it_says_and_no_empty_fields():
    assert as_dict(Q) == {"role": "user", "content": "q"}
    assert as_dict(CALL) == {"role": "assistant", "content": "", "tool_calls": [dict(CALL.tool_calls[0])]}
    answer = Message("tool", "3", name="add", tool_call_id="c1")
    assert as_dict(answer) == {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation -%}", "{%-generation%}", "{%  generation  %}"])
def test_marks_are_found_however_they_are_written(mark: str, with_template: With):
    assert has_marks(with_template(f"{mark}x{{% endgeneration %}}"), said(Q))
    assert not has_marks(with_template(PLAIN + "{# generation #}"), said(Q))


def test_of_several_templates_the_one_with_tools_renders_tools(with_template: With):
    tokenizer = with_template({"default": PLAIN, "tool_use": MARKED})
    assert template_for(tokenizer, said(Q)) == PLAIN
    assert template_for(tokenizer, said(Q, tools=(ADD,))) == MARKED


# What a template leaves out


@pytest.mark.parametrize("turn", [Message("system", "be brief"), Message("tool", "7")])
def test_a_turn_without_which_the_text_is_the_same_is_named(turn: Message, with_template: With):
    template = (
        "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}{{ m['content'] }};{% endif %}{% endfor %}"
    )
    with pytest.raises(
        DataError, match=rf"^f:3: .* leaves out turn 1, of role {turn.role}\. Choose one that has that role"
    ):
        render(with_template(template), said(turn, Q), (turn, Q))


def test_an_empty_turn_and_an_earlier_answer_may_be_left_out(with_template: With):
    empty = Message("system", " \n")
    assert render(with_template(FORGETTING), said(empty, Q, A, R), (empty, Q, A, R)).endswith("assistant:…;user:r;")


@pytest.mark.parametrize(
    ("sample", "lost"), [(said(Q, A, tools=(ADD,)), "the tool add"), (said(Q, CALL), "the call of add")]
)
def test_tools_and_calls_that_are_left_out_are_named(sample: Sample, lost: str, with_template: With):
    with pytest.raises(
        DataError, match=rf"^f:3: the model's chat template leaves out {lost}\. Choose one that has tools"
    ):
        render(with_template(PLAIN), sample, sample.messages)


def test_tools_and_calls_that_are_written_pass(with_template: With):
    template = (
        "{% for tool in tools or [] %}<{{ tool['function']['name'] }}>{% endfor %}{% for m in messages %}"
        "{{ m['role'] }}:{{ m['content'] }}{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}{% endfor %};"
        "{% endfor %}"
    )
    sample = said(Q, CALL, tools=(ADD,))
    assert render(with_template(template), sample, sample.messages) == "<add>user:q;assistant:add;"


# What a template refuses


def test_what_a_template_raises_names_the_roles():
    error = refused(said(S, Q), (S, Q), ValueError("no system"))
    assert str(error) == "f:3: the model's chat template refuses the roles system, user: no system"


def test_a_template_that_is_none_is_told_by_its_line(with_template: With):
    with pytest.raises(DataError, match=r"^The chat template is not valid Jinja: line 2: "):
        render(with_template("{% for m in messages %}\n{{ m['content' }}"), said(Q), (Q,))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{{ messages[0].content.no.such.thing }}", "{{ 1 / 0 }}"]
)
def test_whatever_a_template_raises_is_one_error(template: str, with_template: With):
    with pytest.raises(DataError, match=r"^f:3: the model's chat template refuses the roles user: "):
        render(with_template(template), said(Q), (Q,))
