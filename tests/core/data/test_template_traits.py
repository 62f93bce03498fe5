"""Chat templates asked how they take turns and how answers end in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lmflow.data.template_traits import next_special, special_texts, template_faults, traits_of, turn_end_ids
from lmflow.data.turn_forms import TurnForm

With = Callable[..., Any]
HEAD = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
CALLS = "{% for c in m.tool_calls or [] %}CALL{% endfor %}"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NAME = "{{ c.function.name }}"
OBJECT, TEXT = f"{NAME} {{{{ c.function.arguments | tojson }}}}", f"{NAME} {{{{ c.function.arguments }}}}"
ITEMS = f"{NAME}({{% for k, v in c.function.arguments.items() %}}{{{{ k }}}}={{{{ v }}}}{{% endfor %}})"
JOINED = "{{ c.function.name + c.function.arguments }}"


@pytest.fixture
def asked(make_tokenizer: Callable[..., Any]) -> With:
    """The traits of a template with this way to write contents, and calls."""

    def ask(content: str = "{{ m.content }}", call: str = OBJECT, tail: str = TAIL) -> Any:
        return traits_of(make_tokenizer(chat_template=HEAD + content + CALLS.replace("CALL", call) + tail))

    return ask


@pytest.mark.parametrize(("call", "as_text"), [(OBJECT, False), (ITEMS, False), (TEXT, True), (JOINED, True)])
def test_arguments_are_given_as_the_template_reads_them(call: str, as_text: bool, asked: With):
    assert asked(call=call).form == TurnForm(arguments_as_text=as_text, thoughts="inside")


def test_calls_that_are_written_by_their_ids_alone_get_names_in_them(asked: With):
    assert asked(call="{{ c.id }} {{ c.function.arguments | tojson }}").form.ids_name_calls


@pytest.mark.parametrize(
    ("content", "as_parts"),
    [
        ("{{ m.content }}", False),
        ("{{ m.content | trim }}", False),
        ("{% for p in m.content %}{{ p.text }}{% endfor %}", True),
        ("{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}", False),
        ("{{ m.content[:3] }}", False),  # which cuts texts, and would write lists as Python does
    ],
)
def test_contents_are_given_as_the_template_reads_them(content: str, as_parts: bool, asked: With):
    assert asked(content).form.content_as_parts is as_parts


@pytest.mark.parametrize(
    ("content", "thoughts"),
    [
        ("{{ m.content }}", "inside"),
        ("{{ m.reasoning_content or '' }}{{ m.content }}", "beside"),
        ("{% if m.thinking %}{{ m.thinking }}{% endif %}{{ m.content }}", "beside"),
        ("{{ m.content.split('</think>')[-1] }}", "as given"),
    ],
)
def test_thoughts_stand_where_the_template_reads_them(content: str, thoughts: str, asked: With):
    assert asked(content).form.thoughts == thoughts


@pytest.mark.parametrize(
    ("tail", "ends", "call_end"),
    [
        (TAIL, ("<|im_end|>",), "<|im_end|>"),
        ("{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}", ("<|im_end|>",), "<|im_end|>"),
        ("\n{% endfor %}", ("<|im_start|>",), "<|im_start|>"),
        ("<|im_end|>{% endfor %}<|pad|>", ("<|im_end|>",), None),
    ],
)
def test_what_ends_an_answer_is_seen(tail: str, ends: tuple[str, ...], call_end: str | None, asked: With):
    found = asked(tail=tail)
    assert found.ends == ends
    assert found.call_end == call_end


def test_a_template_that_refuses_everything_has_the_usual_form_and_no_end(make_tokenizer: Callable[..., Any]):
    found = traits_of(make_tokenizer(chat_template="{{ raise_exception('no') }}"))
    assert (found.form, found.ends, found.call_end) == (TurnForm(), (), None)


def test_a_template_is_asked_once_and_again_when_it_changes(
    make_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    tokenizer = make_tokenizer(chat_template=HEAD + "{{ m.content }}" + TAIL)
    first = traits_of(tokenizer)
    assert traits_of(tokenizer) is first
    tokenizer.chat_template = HEAD + "{{ m.reasoning_content or '' }}{{ m.content }}" + TAIL
    assert traits_of(tokenizer).form.thoughts == "beside"


def test_special_tokens_are_known_wherever_the_tokenizer_says_so(make_tokenizer: Callable[..., Any]):
    """As a base model's: its end-of-text token is another than the end of a turn, which no special_tokens_map names."""
    tokenizer = make_tokenizer(chat_template=HEAD + "{{ m.content }}<|turn|>\n{% endfor %}")
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    assert "<|turn|>" in special_texts(tokenizer)
    assert "<|begin|>" not in special_texts(tokenizer)
    assert turn_end_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<|turn|>")
    tokenizer.chat_template = None
    assert turn_end_ids(tokenizer) == []


def test_only_white_space_stands_before_the_next_special_token(asked: With):
    special = asked().special
    found = next_special(special, "a \n<|im_end|>", 1)
    assert found is not None
    assert found.group() == "<|im_end|>"
    assert next_special(special, "a b<|im_end|>", 1) is None


def test_what_a_template_is_not_fit_for_is_said(make_tokenizer: Callable[..., Any]):
    plain = HEAD + "{{ m.content }}" + TAIL
    assert traits_of(make_tokenizer(chat_template=plain)).faults == ()
    [unknown] = traits_of(make_tokenizer(chat_template=plain.replace("<|im_end|>", "<|eot_id|>"))).faults
    assert unknown.startswith("it writes '<|eot_id|>', which the tokenizer does not know as tokens")
    [unasked] = traits_of(make_tokenizer(chat_template=plain.replace("add_generation_prompt", "false"))).faults
    assert unasked.startswith("it writes '<|im_start|>assistant' before an answer and nothing where an answer is asked")
    assert template_faults(make_tokenizer(chat_template=None)) == ()
