"""Dialogues as text: where answers are, and what is said of templates that leave something out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lmflow.data.rendering import Rendering, has_marks, render, renderings, template_for
from lmflow.data.rendering_errors import refused
from lmflow.data.sample import Message, Sample
from lmflow.data.template_traits import apply
from lmflow.data.turn_forms import TurnForm
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
    return ["".join(rendering.text[start:end] for start, end in answer.spans) for answer in rendering.answers]


# Where answers are


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_answers_stand_in_the_text_with_what_ends_them(template: str, with_template: With):
    [found] = renderings(with_template(template.replace("}};", "}}<|im_end|>")), said(S, Q, A, R, B))
    assert found.text.replace("<|im_end|>", ";") == "system:s;user:q;assistant:a;user:r;assistant:数据;"
    assert answers(found) == ["a<|im_end|>", "数据<|im_end|>"]
    assert [(answer.turn, found.text[: answer.start][-10:]) for answer in found.answers] == [
        (2, "assistant:"),
        (4, "assistant:"),
    ]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_answers_that_nothing_ends_have_texts_of_their_own(template: str, with_template: With):
    """Only at the end of a text can an end be put behind an answer."""
    found = renderings(with_template(template), said(S, Q, A, R, B))
    assert [answers(each) for each in found] == [["a;"], ["数据;"]]
    assert not any(answer.ended for each in found for answer in each.answers)


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize("turns", [(Q,), (S, Q), (S,)])
def test_a_dialogue_without_an_answer_has_none(template: str, turns: tuple[Message, ...], with_template: With):
    [found] = renderings(with_template(template), said(*turns))
    assert found.answers == ()
    assert "q" in found.text or turns == (S,)


def test_a_template_that_rewrites_earlier_turns_gives_a_text_for_each_answer(with_template: With):
    found = renderings(with_template(FORGETTING), said(Q, A, R, B))
    assert [each.text for each in found] == ["user:q;assistant:a;", "user:q;assistant:…;user:r;assistant:数据;"]
    assert [answers(each) for each in found] == [["a;"], ["数据;"]]
    assert [[answer.turn for answer in each.answers] for each in found] == [[1], [3]]


def test_marks_that_forget_earlier_turns_give_a_text_for_each_answer(with_template: With):
    template = MARKED.replace(
        "{{ m['content'] }};{% endgeneration %}",
        "{% if loop.last %}{{ m['content'] }}{% else %}…{% endif %};{% endgeneration %}",
    )
    assert template != MARKED
    found = renderings(with_template(template), said(Q, A, R, B))
    assert [answers(each) for each in found] == [["a;"], ["数据;"]]


def test_an_answer_after_another_prompt_than_the_templates_is_refused(with_template: With):
    """It would be learnt for a prompt that the model is never given."""
    template = PLAIN.replace("assistant:{% endif %}", "assistant, in brief:{% endif %}")
    with pytest.raises(
        DataError, match=r"^f:3: .* asks for answers with '.*, in brief:' and writes that of turn 2 after"
    ):
        renderings(with_template(template), said(Q, A))


SYSTEM_TO_THE_LAST = (  # as Mistral's: the system's text stands before a question that nothing answers, and nowhere else
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + ' ' %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ s if s and loop.last else '' }}"
    "{{ m.content }}<|im_end|>{% else %}ANSWER<|im_start|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("answer", ["{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}"])
def test_an_answer_stands_after_the_prompt_it_is_asked_with(answer: str, with_template: With):
    first, second = renderings(with_template(SYSTEM_TO_THE_LAST.replace("ANSWER", answer)), said(S, Q, A, R, B))
    assert first.text == "<|im_start|>s q<|im_end|>a<|im_start|>"
    assert second.text == "<|im_start|>q<|im_end|>a<|im_start|><|im_start|>s r<|im_end|>数据<|im_start|>"
    assert answers(first) == ["a<|im_start|>"]
    assert answers(second) == ["数据<|im_start|>"]


def test_what_stands_under_the_heading_beside_the_answer_is_no_answer(with_template: With):
    """Here the question is the system's in the prompt, and has a heading of its own once it is answered."""
    odd = (
        "<|im_start|>{% if add_generation_prompt %}{{ messages[-1].content }}<|im_end|>{% else %}<|im_end|>"
        "{% for m in messages %}{{ m.content }};{% endfor %}{% endif %}"
    )
    with pytest.raises(DataError, match=r"for another prompt than it is asked with\. Mend what the template adds"):
        renderings(with_template(odd), said(Q, A))


def test_a_turn_that_another_repeats_is_not_taken_for_it(with_template: With):
    dropping = PLAIN.replace("messages %}", "messages if m['role'] != 'system' %}")
    turns = Message("system", "q"), Message("user", "the q here"), A
    with pytest.raises(DataError, match="leaves out turn 1, of role system"):
        renderings(with_template(dropping), said(*turns))
    [found] = renderings(with_template(PLAIN), said(*turns))
    assert found.text == "system:q;user:the q here;assistant:a;"


def test_a_thought_outside_the_template_s_marks_is_not_left_unlearnt(with_template: With):
    outside = MARKED.replace("{% generation %}", "{{ m.reasoning_content or '' }}|{% generation %}")
    with pytest.raises(DataError, match=r"leaves the thought 'why so' of turn 2 outside"):
        renderings(with_template(outside), said(Q, replace(A, thinking="why so")))
    assert answers(*renderings(with_template(outside.replace("|", "")), said(Q, A))) == ["a;"]


THOUGHT_IN_FRONT = (
    "{% for m in messages %}{% if m.reasoning_content %}<|im_start|>analysis\n{{ m.reasoning_content }}<|im_end|>{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_thought_in_front_of_the_prompt_is_trained_where_it_stands(with_template: With):
    tokenizer = with_template(THOUGHT_IN_FRONT)
    [found] = renderings(tokenizer, said(Q, replace(A, thinking="hm"), R, B))
    assert found.text == apply(tokenizer, found.sample.messages, TurnForm())
    assert answers(found) == ["analysis\nhm<|im_end|><|im_start|>assistant\na<|im_end|>", "数据<|im_end|>"]
    inside = Message("assistant", "<think>\nhm\n</think>\n\na")
    assert answers(*renderings(tokenizer, said(Q, inside))) == answers(found)[:1]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_a_thought_that_the_prompt_opens_is_closed_before_an_answer_without_one(template: str, with_template: With):
    template = template.replace("assistant:{% endif %}", "assistant:<think>\n{% endif %}")
    first, second = renderings(with_template(template), said(Q, A, R, Message("assistant", "<think>\nhm</think>b")))
    assert first.text == "user:q;assistant:<think>\n\n</think>\n\na;"
    assert answers(first) == ["\n</think>\n\na;"]
    assert answers(second) == ["hm</think>b;"]


def test_an_empty_answer_has_its_end(with_template: With):
    [found] = renderings(with_template(PLAIN), said(Q, Message("assistant", "")))
    assert answers(found) == [";"]


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation -%}", "{%-generation%}", "{%  generation  %}"])
def test_marks_are_found_however_they_are_written(mark: str, with_template: With):
    assert has_marks(with_template(f"{mark}x{{% endgeneration %}}"), said(Q))
    assert not has_marks(with_template(PLAIN + "{# generation #}"), said(Q))


def test_of_several_templates_the_one_with_tools_renders_tools(with_template: With):
    tokenizer = with_template({"default": PLAIN, "tool_use": MARKED})
    assert template_for(tokenizer, said(Q)) == PLAIN
    assert template_for(tokenizer, said(Q, tools=(ADD,))) == MARKED


# Which texts there are


ENDED = PLAIN.replace("}};", "}}<|im_end|>")
LATE_TOOLS = (  # as Mistral's: what is offered stands before the last question
    "{% set last = namespace(user=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if tools and loop.index0 == last.user %}<{{ tools[0]['function']['name'] }}>{% endif %}"
    "{{ m['role'] }}:{{ m['content'] }}{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_answers_share_a_text_as_far_as_their_prompts_begin_it(with_template: With):
    result = Message("tool", "3")
    sample = said(Q, CALL, result, A, R, CALL, result, B, tools=(ADD,))
    found = renderings(with_template(LATE_TOOLS), sample)
    assert [[answer.turn for answer in each.answers] for each in found] == [[1, 3], [5, 7]]
    assert found[0].text.startswith("<add>user:q")
    assert found[1].text.startswith("user:q")
    assert all("<add>user:" in each.text for each in found)
    assert [len(renderings(with_template(LATE_TOOLS), sample, apart=True)), len(found)] == [4, 2]


def test_a_turn_that_is_not_to_be_learnt_is_no_answer(with_template: With):
    bad = Message("assistant", "bad", is_target=False)
    [found] = renderings(with_template(ENDED), said(Q, bad, R, B))
    assert answers(found) == ["数据<|im_end|>"]
    assert [found.text[start:end] for start, end in found.unlearnt] == ["bad<|im_end|>"]
    [alone] = renderings(with_template(ENDED), said(Q, bad))
    assert (alone.answers, [alone.text[a:b] for a, b in alone.unlearnt]) == ((), ["bad<|im_end|>"])


def test_turns_after_the_last_answer_stay(with_template: With):
    [found] = renderings(with_template(ENDED), said(Q, A, R))
    assert found.text == "user:q<|im_end|>assistant:a<|im_end|>user:r<|im_end|>"
    assert answers(found) == ["a<|im_end|>"]


# How answers end


def test_the_next_roles_token_ends_an_answer_that_has_no_end_of_its_own(with_template: With):
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}{% endfor %}" + (
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    [found] = renderings(with_template(template), said(Q, A, R, B))
    assert answers(found) == ["a<|im_start|>", "数据"]
    assert [(each.ended, each.missing_end) for each in found.answers] == [
        (True, "<|im_start|>"),
        (False, "<|im_start|>"),
    ]


@pytest.mark.parametrize("behind", ["<|im_end|>\n", "<|im_end|>\n \n"])
def test_white_space_inside_marks_after_an_end_is_not_trained(behind: str, with_template: With):
    template = MARKED.replace(
        "{{ m['content'] }};{% endgeneration %}", "{{ m['content'] }}" + behind + "{% endgeneration %}"
    )
    [found] = renderings(with_template(template), said(Q, A, R, B))
    assert answers(found) == ["a<|im_end|>", "数据<|im_end|>"]
    assert all(each.ended for each in found.answers)


def test_marks_without_the_end_that_follows_get_it(with_template: With):
    template = MARKED.replace("}};{% endgeneration %}", "}}{% endgeneration %}<|im_end|>")
    [found] = renderings(with_template(template), said(Q, A, R, B))
    assert answers(found) == ["a<|im_end|>", "数据<|im_end|>"]


def test_a_second_end_that_only_the_last_turn_has_is_not_trained(with_template: With):
    """As Phi-3, which closes a whole dialogue with the end-of-text token."""
    template = ENDED + "{% if not add_generation_prompt %}<|pad|>{% endif %}"
    [found] = renderings(with_template(template), said(Q, A, R, B))
    assert answers(found) == ["a<|im_end|>", "数据<|im_end|>"]


# What a template leaves out


THINKER = Message("assistant", "<think>\nwhy so\n</think>\n\nlater")


@pytest.mark.parametrize(
    ("content", "turn", "lost"),
    [
        ("m['content'].split('</think>')[-1]", THINKER, "the thought 'why so' of turn 2, which"),
        ("m['content'][:3]", Message("assistant", "all of it"), "the text 'all of it' of turn 2, which"),
    ],
)
def test_what_an_answer_says_and_the_text_does_not_is_named(
    content: str, turn: Message, lost: str, with_template: With
):
    template = PLAIN.replace("m['content']", f"({content} if m['role'] == 'assistant' else m['content'])")
    with pytest.raises(DataError, match=rf"^f:3: the model's chat template leaves out {re.escape(lost)}"):
        renderings(with_template(template), said(Q, turn))


CALLS = "{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}"


def test_text_beside_a_call_and_every_call_are_looked_for(with_template: With):
    first = PLAIN.replace(
        "{{ m['content'] }}",
        "{{ m['content'] }}" + CALLS.replace("m['tool_calls'] or []", "(m['tool_calls'] or [])[:1]"),
    )
    other = {"type": "function", "function": {"name": "sub", "arguments": {"b": 2}}}
    two = replace(CALL, tool_calls=(*CALL.tool_calls, other))
    with pytest.raises(DataError, match="leaves out the call of 'sub' of turn 2"):
        renderings(with_template(first), said(Q, two))
    dropping = PLAIN.replace(
        "{{ m['content'] }}", "{% if m['tool_calls'] %}" + CALLS + "{% else %}{{ m['content'] }}{% endif %}"
    )
    with pytest.raises(DataError, match="leaves out the text 'I look' of turn 2 beside its calls"):
        renderings(with_template(dropping), said(Q, replace(CALL, content="I look")))
    assert len(renderings(with_template(dropping), said(Q, CALL))) == 1


def test_marks_that_leave_what_is_said_outside_are_refused(with_template: With):
    template = MARKED.replace("{% generation %}{{ m['content'] }};", "{{ m['content'] }}{% generation %};")
    with pytest.raises(
        DataError, match=r"marks answers with \{% generation %\} and leaves the text 'a' of turn 2 outside"
    ):
        renderings(with_template(template), said(Q, A))


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
    ("sample", "lost"),
    [
        (said(Q, A, tools=(ADD,)), "the tool add"),
        (said(Q, CALL), "the call of 'add' of turn 2, which would not be learnt"),
        (said(Q, CALL, Message("tool", "3"), A, tools=(ADD,)), "the tool add"),
    ],
)
def test_tools_and_calls_that_are_left_out_are_named(sample: Sample, lost: str, with_template: With):
    """The name of a tool in a call is no offer of it."""
    template = PLAIN if not sample.tools else PLAIN.replace("{{ m['content'] }}", "{{ m['content'] }}" + CALLS)
    with pytest.raises(
        DataError, match=rf"^f:3: the model's chat template leaves out {lost}\. Choose one that has tools"
    ):
        renderings(with_template(template), sample)


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
    error = refused(said(S, Q), ValueError("no system"))
    assert str(error) == "f:3: the model's chat template cannot write this dialogue (turns of system, user): no system"


def test_a_template_that_is_none_is_told_by_its_line(with_template: With):
    with pytest.raises(DataError, match=r"^The chat template is not valid Jinja: line 2: "):
        render(with_template("{% for m in messages %}\n{{ m['content' }}"), said(Q), (Q,))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "{{ messages[0].content.no.such.thing }}", "{{ 1 / 0 }}"]
)
def test_whatever_a_template_raises_is_one_error(template: str, with_template: With):
    with pytest.raises(
        DataError, match=r"^f:3: the model's chat template cannot write this dialogue \(turns of user\): "
    ):
        render(with_template(template), said(Q), (Q,))
