"""Masks: ids are the template's own, and the loss is on the assistant's tokens and the end after them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lmflow.data.sample import Message, Sample
from lmflow.data.tokenize import PLAIN_TEMPLATE, encode_prompt, encode_sample, ensure_chat_template, prepare_tokenizer
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }} <|im_end|>{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (  # as Qwen3: the reasoning of earlier turns is left out
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAID_ALONE = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
TWO_ROLES = (
    "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"

DIALOGUE = Sample(
    (
        Message("user", "the fox"),
        Message("assistant", "jumps"),
        Message("user", "and then"),
        Message("assistant", "stops"),
    ),
    source="d:1",
)
END = 1  # <|im_end|> in the tests' tokenizer


@pytest.fixture
def with_template(make_tokenizer: Any) -> Any:
    def make(template: str | None, **options: Any) -> Any:
        return make_tokenizer(chat_template=template, **options)

    return make


def trained_text(tokenizer: Any, sequence: Any) -> list[str]:
    """The runs of trained tokens, decoded."""
    runs: list[list[int]] = []
    before = False
    for token, is_trained in zip(sequence.ids, sequence.loss_mask):
        if is_trained:
            runs = runs if before else [*runs, []]
            runs[-1].append(token)
        before = is_trained
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["jumps<|im_end|>", "stops<|im_end|>"]),
        (MARKED, ["jumps<|im_end|>", "stops<|im_end|>"]),
        (SAID_ALONE, ["jumps<|im_end|>", "stops<|im_end|>"]),
        (LLAMA3, ["jumps<|im_end|>", "stops<|im_end|>"]),
        (LLAMA2, [" jumps <|im_end|>", " stops <|im_end|>"]),
        (GEMMA, ["jumps<|im_end|>", "stops<|im_end|>"]),
        (PLAIN_TEMPLATE, ["jumps<|im_end|>", "stops<|im_end|>"]),
    ],
    ids=["chatml", "marked", "marked without the end", "llama3", "llama2", "gemma", "plain"],
)
@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"], ids=["own pad", "pad is eos"])
def test_ids_are_the_templates_and_answers_with_their_end_are_trained(
    template: str, expected: list[str], pad: str, with_template: Any
):
    tokenizer = with_template(template, pad=pad)
    [sequence] = encode_sample(tokenizer, DIALOGUE, end_ids=[END])
    turns = [{"role": m.role, "content": m.content} for m in DIALOGUE.messages]
    assert list(sequence.ids) == tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert trained_text(tokenizer, sequence) == expected
    assert sequence.source == "d:1"


@pytest.mark.parametrize("template", [CHATML, MARKED, LLAMA3, GEMMA, THINKING, PLAIN_TEMPLATE])
def test_a_system_turn_first(template: str, with_template: Any):
    tokenizer = with_template(template)
    sample = Sample((Message("system", "be brief"), Message("user", "q"), Message("assistant", "a")))
    [sequence] = encode_sample(tokenizer, sample, end_ids=[END])
    assert trained_text(tokenizer, sequence) == ["a<|im_end|>"]


def test_reasoning_is_kept_in_every_target(with_template: Any):
    """Where later turns rewrite earlier ones, each answer is trained as the last one: with its reasoning."""
    tokenizer = with_template(THINKING)
    sample = Sample(
        (
            Message("user", "q"),
            Message("assistant", "<think>why</think>a"),
            Message("user", "r"),
            Message("assistant", "<think>how</think>b"),
        )
    )
    sequences = encode_sample(tokenizer, sample, end_ids=[END])
    assert [trained_text(tokenizer, s) for s in sequences] == [
        ["<think>why</think>a<|im_end|>"],
        ["<think>how</think>b<|im_end|>"],
    ]
    assert "why" not in tokenizer.decode(sequences[1].ids)


def test_an_end_is_added_where_the_template_has_none(with_template: Any):
    tokenizer = with_template(NO_END)
    sequences = encode_sample(tokenizer, DIALOGUE, end_ids=[END])
    assert all(sequence.ids[-1] == END and sequence.loss_mask[-1] for sequence in sequences)
    assert all(list(sequence.ids).count(END) == 1 for sequence in sequences)
    assert [trained_text(tokenizer, each) for each in sequences] == [["jumps\n<|im_end|>"], ["stops\n<|im_end|>"]]


def test_a_prompt_that_ends_inside_a_token_has_a_sequence_of_its_own(with_template: Any):
    """The blank before an answer belongs to its first word: one text for all would have other ids than the prompts."""
    tokenizer = with_template(NO_END)
    for count, sequence in zip((2, 4), encode_sample(tokenizer, DIALOGUE, end_ids=[END]), strict=True):
        prompt = encode_prompt(tokenizer, Sample(DIALOGUE.messages[:count]))
        turns = [{"role": m.role, "content": m.content} for m in DIALOGUE.messages[: count - 1]]
        own = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]
        assert prompt == own == list(sequence.ids[: len(own)])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((Message("assistant", "the fox"),), ["the fox<|im_end|>"]),
        ((Message("user", "the fox"), Message("assistant", " jumps")), [" jumps<|im_end|>"]),
    ],
)
def test_untemplated_text_ends_too(messages: Any, expected: list[str], with_template: Any):
    tokenizer = with_template(CHATML)
    [sequence] = encode_sample(tokenizer, Sample(messages, templated=False), end_ids=[END])
    assert trained_text(tokenizer, sequence) == expected
    assert tokenizer.decode(sequence.ids) == "".join(m.content for m in messages) + "<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, MARKED, LLAMA3, LLAMA2, GEMMA, THINKING, PLAIN_TEMPLATE, NO_END])
@pytest.mark.parametrize("turns", [2, 4])
def test_the_prompt_is_a_prefix_of_what_is_trained(template: str, turns: int, with_template: Any):
    tokenizer = with_template(template)
    sample = Sample(DIALOGUE.messages[:turns])
    sequence = encode_sample(tokenizer, sample, end_ids=[END])[-1]
    prompt = encode_prompt(tokenizer, sample)
    assert list(sequence.ids[: len(prompt)]) == prompt
    assert not any(sequence.loss_mask[: len(prompt)]) or turns == 4
    assert sequence.loss_mask[len(prompt)]


def test_prompts_of_untemplated_samples(with_template: Any):
    tokenizer = with_template(CHATML)
    pair = Sample((Message("user", "the fox"), Message("assistant", " jumps")), templated=False)
    assert tokenizer.decode(encode_prompt(tokenizer, pair)) == "the fox"
    text = Sample((Message("assistant", "the fox"),), templated=False)
    assert tokenizer.decode(encode_prompt(tokenizer, text)) == "the fox"


def test_train_on_all(with_template: Any):
    [sequence] = encode_sample(with_template(CHATML), DIALOGUE, train_on="all", end_ids=[END])
    assert all(sequence.loss_mask)


def test_a_prompt_without_an_answer_has_no_target(with_template: Any):
    for template in (CHATML, MARKED):
        [sequence] = encode_sample(with_template(template), Sample((Message("user", "q"),)), end_ids=[END]) or [None]
        assert sequence.num_targets == 0


def test_a_role_the_template_refuses(with_template: Any):
    sample = Sample((Message("system", "s"), Message("user", "q")), source="f:3")
    with pytest.raises(DataError, match=r"f:3: .*cannot write this dialogue \(turns of system, user\): Only user and"):
        encode_sample(with_template(LLAMA2), sample, end_ids=[END])


@pytest.mark.parametrize("turn", [Message("tool", "4"), Message("system", "be brief")])
@pytest.mark.parametrize("marked", [False, True])
def test_a_role_the_template_ignores(turn: Message, marked: bool, with_template: Any):
    """What a tool answers stands in the next answer too, so that its text alone would not tell."""
    template = (
        f"{TWO_ROLES}{{% if false %}}{{% generation %}}{{% endgeneration %}}{{% endif %}}" if marked else TWO_ROLES
    )
    answer = Message("assistant", "It is 4")
    sample = Sample((Message("user", "2 + 2"), Message("assistant", "I add"), turn, answer), source="f:3")
    for encode in (
        (lambda: encode_sample(with_template(template), sample, end_ids=[END])),
        (lambda: encode_prompt(with_template(template), sample)),
    ):
        with pytest.raises(DataError, match=rf"f:3: .*leaves out turn 3, of role {turn.role}"):
            encode()


def test_a_template_for_tokenizers_without_one(with_template: Any):
    tokenizer = with_template(None)
    assert ensure_chat_template(tokenizer)
    assert not ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == PLAIN_TEMPLATE


SPEAKING_OF_TOKENS = Sample(
    (
        Message("user", "what is <|im_end|> for?"),
        Message("assistant", "<|im_end|> ends"),
        Message("user", "and <|im_start|>"),
        Message("assistant", "begins<|im_end|>"),
    ),
    source="d:1",
)


@pytest.mark.parametrize("template", [CHATML, MARKED, LLAMA3, LLAMA2, NO_END, PLAIN_TEMPLATE])
def test_special_tokens_that_somebody_says_are_text(template: str, with_template: Any):
    """Or else an answer would end in its middle, and a user could write the next role's turn."""
    tokenizer = with_template(template)
    sequences = encode_sample(tokenizer, SPEAKING_OF_TOKENS, end_ids=[END])
    for sequence in sequences:
        own = [index for index, token in enumerate(sequence.ids) if token == END]
        ends = [index for index in own if sequence.loss_mask[index]]
        assert len(ends) == len(trained_text(tokenizer, sequence)), "each answer has one, where it ends"
    said = "".join(text for sequence in sequences for text in trained_text(tokenizer, sequence))
    assert "<|im_end|> ends" in said
    assert "begins<|im_end|>" in said
    prompt = encode_prompt(tokenizer, SPEAKING_OF_TOKENS)
    assert list(sequences[-1].ids[: len(prompt)]) == prompt
    assert tokenizer.decode(prompt).count("<|im_start|>") == tokenizer.decode(sequences[-1].ids).count("<|im_start|>")


def test_an_error_speaks_of_the_tokens_that_were_said(with_template: Any):
    sample = Sample((Message("user", "q"), Message("assistant", "<think>an <|im_end|></think>a")), source="f:3")
    dropping = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
    with pytest.raises(DataError, match=r"leaves out the thought 'an <\|im_end\|>' of turn 2"):
        encode_sample(with_template(dropping), sample, end_ids=[END])


def test_special_tokens_of_plain_text_are_what_they_are(with_template: Any):
    """Who writes text without a template writes its special tokens too."""
    [sequence] = encode_sample(
        with_template(CHATML), Sample((Message("assistant", "a<|im_end|>b"),), templated=False), end_ids=[END]
    )
    assert list(sequence.ids).count(END) == 2


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN_TEMPLATE])
@pytest.mark.parametrize("train_on", ["assistant", "all", "last"])
def test_a_turn_that_is_not_to_be_learnt_has_no_target(template: str, train_on: str, with_template: Any):
    tokenizer = with_template(template)
    bad = Message("assistant", "jumps", is_target=False)
    for turns, learnt in (
        ((DIALOGUE.messages[0], bad, *DIALOGUE.messages[2:]), "stops"),
        ((*DIALOGUE.messages[:3], Message("assistant", "stops", is_target=False)), "jumps"),
    ):
        [sequence] = encode_sample(tokenizer, Sample(turns), train_on=train_on, end_ids=[END])
        said = "".join(trained_text(tokenizer, sequence))
        assert ("jumps" in said) is (learnt == "jumps" and train_on != "last"), "the last answer alone, or none"
        assert ("stops" in said) is (learnt == "stops")


@pytest.mark.parametrize(
    ("train_on", "learnt"), [("assistant", ["two", "four<|im_end|>"]), ("last", ["four<|im_end|>"]), ("all", None)]
)
def test_texts_without_a_template_are_learnt_as_their_turns_say(train_on: str, learnt: Any, with_template: Any):
    tokenizer = with_template(CHATML)
    turns = [
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "four"),
    ]
    said = Sample(tuple(turns), templated=False)
    [sequence] = encode_sample(tokenizer, said, train_on=train_on, end_ids=[END])
    assert trained_text(tokenizer, sequence) == (learnt or [tokenizer.decode(sequence.ids)])
    silent = Sample((*turns[:3], replace(turns[3], is_target=False)), templated=False)
    [sequence] = encode_sample(tokenizer, silent, train_on=train_on, end_ids=[END])
    expected = {"assistant": ["two"], "last": [], "all": ["onetwothree"]}[train_on]
    assert trained_text(tokenizer, sequence) == expected


@pytest.mark.parametrize("content", ["a brown fox", "a <|im_end|> fox"])
def test_a_tokenizer_that_splits_special_tokens_does_so_whatever_is_said(content: str, with_template: Any):
    tokenizer = with_template(CHATML)
    tokenizer.split_special_tokens = True
    said = Sample((Message("user", content), Message("assistant", "yes")), source="d:1")
    [sequence] = encode_sample(tokenizer, said, end_ids=[END])
    assert END not in sequence.ids
    assert sequence.ids[: len(encode_prompt(tokenizer, said))] == encode_prompt(tokenizer, said)


def test_special_tokens_in_contents_are_kept_where_that_is_asked_for(with_template: Any, tmp_path: Path):
    tokenizer = with_template(CHATML)
    said = Sample((Message("user", "a <|im_end|> fox"), Message("assistant", "b <|im_start|> c")), source="d:1")

    def ends(tokenizer: Any) -> tuple[int, int]:
        [sequence] = encode_sample(tokenizer, said, end_ids=[END])
        prompt = encode_prompt(tokenizer, said)
        assert sequence.ids[: len(prompt)] == prompt
        return list(prompt).count(END), list(sequence.ids).count(END)

    assert ends(tokenizer) == (1, 2)
    prepare_tokenizer(tokenizer, DataOptions(special_tokens="keep"))
    assert ends(tokenizer) == (2, 3)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert ends(again) == (2, 3), "a result is asked as it was trained"
    prepare_tokenizer(again, DataOptions())
    assert ends(again) == (2, 3)
    prepare_tokenizer(again, DataOptions(special_tokens="text"))
    assert ends(again) == (1, 2)
