# ruff: noqa: RUF001 - DeepSeek's bars are wide, and a format is one string
"""Templates by name against each model's published format, transformers' own masks, and what the model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmflow.data.chat_templates import PRESETS, chat_template, use_template
from lmflow.data.rendering import render
from lmflow.data.sample import Message, Sample
from lmflow.data.template_traits import turn_end_ids
from lmflow.data.tokenize import encode_prompt, encode_sample
from lmflow.data.turn_forms import TurnForm, as_dicts
from lmflow.errors import DataError, RecipeError

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|user|>"),
    *("<|assistant|>", "<|system|>", "<|observation|>", "<start_of_turn>", "<end_of_turn>", "<extra_id_0>"),
    *("<extra_id_1>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "[gMASK]", "sop"),
]
ENDS = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>"]
SYSTEM, HI, HELLO = Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello")
SUM, FOUR = Message("user", "2+2?"), Message("assistant", "4")
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},))
TOOL_TALK = Sample((SUM, CALL, Message("tool", "4"), FOUR), source="t:1", tools=(ADD,))
NO_SYSTEM = {"gemma"}
WITH_TOOLS = {
    name for name, (file, _) in PRESETS.items() if file in ("qwen2_5", "qwen2_for_tool", "qwen3", "llama3_for_tool")
}

# Dialogue [system], Hi, Hello, 2+2?, 4, as the model cards and tokenizer configurations give it; « » around what is
# trained. `<s>` and `</s>` stand for the tokenizer's own begin and end.
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Hello<|im_end|>»\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n«4<|im_end|>»\n"
KIND = "<|im_start|>system\nBe kind.<|im_end|>\n"
DEEPSEEK = "User: Hi\n\nAssistant:« Hello</s>»User: 2+2?\n\nAssistant:« 4</s>»"
DEEPSEEK_3 = (
    "<｜User｜>Hi<｜Assistant｜>«Hello<｜end▁of▁sentence｜>»<｜User｜>2+2?<｜Assistant｜>«4<｜end▁of▁sentence｜>»"
)
GEMMA = "<start_of_turn>model\n«Hello<end_of_turn>»\n<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n«4<end_of_turn>»\n"
LLAMA3 = (
    "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«Hello<|eot_id|>»<|start_header_id|>user<|end_header_id|>\n\n2+2?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«4<|eot_id|>»"
)
EXPECTED = {
    "chatglm3": "[gMASK]sop<|system|>\n Be kind.<|user|>\n Hi<|assistant|>«\n Hello<|user|>»\n 2+2?<|assistant|>«\n 4<|user|>»",
    "chatml": KIND + CHATML,
    "deepseek": f"<s>Be kind.\n\n{DEEPSEEK}",
    "deepseek_v2": f"<s>Be kind.\n\n{DEEPSEEK}",
    "deepseek_v3": f"<s>Be kind.{DEEPSEEK_3}",
    "deepseek_r1": f"<s>Be kind.{DEEPSEEK_3}".replace("«4", "<think>\n«\n</think>\n\n4"),
    "deepseek_r1_distill": f"<s>Be kind.{DEEPSEEK_3}".replace("«4", "<think>\n«\n</think>\n\n4"),
    "gemma": f"<s><start_of_turn>user\nHi<end_of_turn>\n{GEMMA}",
    "gemma3": f"<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n{GEMMA}",
    "hymba": "<extra_id_0>System\nBe kind.\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n2+2?\n<extra_id_1>Assistant\n«4</s>»",
    "internlm2": f"<s>{KIND}{CHATML}",
    "llama2": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]« Hello </s>»<s>[INST] 2+2? [/INST]« 4 </s>»",
    "llama3": f"<s>{LLAMA3}",
    "llama3_for_tool": f"<s>{LLAMA3}".replace(
        "Be kind.", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe kind."
    ),
    "phi3": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n«Hello<|end|>»\n<|user|>\n2+2?<|end|>\n<|assistant|>\n«4<|end|>»\n</s>",
    "qwen2": KIND + CHATML,
    "qwen2_for_tool": KIND + CHATML,
    "qwen2_5": KIND + CHATML,
    "qwen2_5_1m": KIND + CHATML,
    "qwen2_5_math": KIND + CHATML,
    "qwen_qwq": KIND + CHATML,
    "qwen3": KIND + CHATML.replace("«4", "«<think>\n\n</think>\n\n4"),
    "yi": KIND + CHATML,
    "yi1_5": f"Be kind.{CHATML}",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n«Hello</s>»\n<|user|>\n2+2?</s>\n<|assistant|>\n«4</s>»\n",
    "empty": "<s>Be kind.Hi«Hello</s>»2+2?«4</s>»",
    "disable": "<s>Be kind.Hi«Hello</s>»2+2?«4</s>»",
    "empty_no_special_tokens": "Be kind.Hi«Hello»2+2?«4</s>»",
}
REWRITE = {"empty_no_special_tokens", "deepseek_r1", "deepseek_r1_distill", "hymba", "qwen3"}
"""Templates that write the last answer otherwise than earlier ones, each of which is then trained as it was given."""


@pytest.fixture
def tokenizer_with(make_tokenizer: Any) -> Any:
    def make(name: str) -> Any:
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
        tokenizer.add_tokens(SPECIAL, special_tokens=True)
        use_template(tokenizer, name)
        return tokenizer

    return make


def dialogue(name: str, *turns: Message) -> Sample:
    return Sample(tuple(t for t in turns if t.role != "system" or name not in NO_SYSTEM), source="d:1")


def ends_of(tokenizer: Any) -> list[int]:
    return [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ENDS)]


def marked_text(tokenizer: Any, sequence: Any) -> str:
    text, inside = "", False
    for token, trained in zip(sequence.ids, sequence.loss_mask, strict=True):
        text += ("«" if trained and not inside else "»" if inside and not trained else "") + tokenizer.decode([token])
        inside = trained
    return text + ("»" if inside else "")


def trained_parts(tokenizer: Any, sequences: Any) -> list[str]:
    texts = [marked_text(tokenizer, each) for each in sequences]
    return [part.partition("»")[0] for text in texts for part in text.split("«")[1:]]


def test_every_name_is_described_here():
    assert EXPECTED.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_the_format_is_the_models_and_its_answers_are_trained(name: str, tokenizer_with: Any):
    tokenizer = tokenizer_with(name)
    sample = dialogue(name, SYSTEM, HI, HELLO, SUM, FOUR)
    found = [marked_text(tokenizer, each) for each in encode_sample(tokenizer, sample, end_ids=ends_of(tokenizer))]
    whole = EXPECTED[name]
    if name in REWRITE:
        first = dialogue(name, SYSTEM, HI, HELLO)
        [alone] = encode_sample(tokenizer, first, end_ids=ends_of(tokenizer))
        before, _, last = whole.rpartition("«")
        assert found == [marked_text(tokenizer, alone), f"{before.replace('«', '').replace('»', '')}«{last}"]
    else:
        assert found == [whole]


@pytest.mark.parametrize("name", PRESETS)
def test_masks_are_those_of_transformers(name: str, tokenizer_with: Any):
    assert_masks_of_transformers(tokenizer_with(name), dialogue(name, SYSTEM, HI, HELLO, SUM, FOUR))


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_masks_of_dialogues_with_tools_are_those_of_transformers(name: str, tokenizer_with: Any):
    assert_masks_of_transformers(tokenizer_with(name), TOOL_TALK)


def assert_masks_of_transformers(tokenizer: Any, sample: Sample) -> None:
    """Ids and masks are the same; of several sequences, each ends with an answer and has the mask of that one."""
    sequences = encode_sample(tokenizer, sample, end_ids=ends_of(tokenizer))
    answers = [index for index, turn in enumerate(sample.messages) if turn.role == "assistant"]
    for sequence, answer in zip(sequences, answers if len(sequences) > 1 else answers[-1:], strict=True):
        theirs = tokenizer.apply_chat_template(
            as_dicts(sample.messages[: answer + 1], TurnForm()),
            tools=[dict(tool) for tool in sample.tools] or None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = theirs["assistant_masks"] if len(sequences) == 1 else last_run(theirs["assistant_masks"])
        length = len(mask)
        assert list(sequence.ids[:length]) == theirs["input_ids"]
        assert [int(on) for on in sequence.loss_mask[:length]] == mask
        ends = [tokenizer.eos_token_id, *turn_end_ids(tokenizer)]  # an end, where the format writes none here
        assert list(sequence.ids[length:]) in ([], *([end] for end in ends))


def last_run(mask: list[int]) -> list[int]:
    """The mask without all ones but the last that stand together."""
    end = len(mask) - mask[::-1].index(1)
    start = max((index + 1 for index in range(end) if not mask[index]), default=0)
    return [int(start <= index < end) for index in range(len(mask))]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("turns", [(SYSTEM, HI, HELLO), (HI, HELLO, SUM, FOUR), (SYSTEM, HI, HELLO, SUM, FOUR)])
def test_what_is_asked_begins_what_is_trained(name: str, turns: Any, tokenizer_with: Any):
    tokenizer = tokenizer_with(name)
    sample = dialogue(name, *turns)
    prompt = encode_prompt(tokenizer, sample)
    last = encode_sample(tokenizer, sample, end_ids=ends_of(tokenizer))[-1]
    assert list(last.ids[: len(prompt)]) == prompt
    assert last.loss_mask[len(prompt)]
    assert not any(encode_sample(tokenizer, sample, train_on="last", end_ids=[0])[-1].loss_mask[: len(prompt)])


@pytest.mark.parametrize("name", PRESETS)
def test_without_the_marks_masks_are_the_same(name: str, tokenizer_with: Any):
    """What is derived by comparing is what the marks say."""
    tokenizer = tokenizer_with(name)
    sample = dialogue(name, SYSTEM, HI, HELLO, SUM, FOUR)
    marked = encode_sample(tokenizer, sample, end_ids=ends_of(tokenizer))
    for mark in ("generation", "endgeneration"):
        for left in ("{%", "{%-"):
            for right in ("%}", "-%}"):
                tokenizer.chat_template = tokenizer.chat_template.replace(
                    f"{left} {mark} {right}",
                    f"{left} if true {right}" if mark == "generation" else f"{left} endif {right}",
                )
    derived = encode_sample(tokenizer, sample, end_ids=ends_of(tokenizer))
    assert trained_parts(tokenizer, derived) == trained_parts(tokenizer, marked)


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_calls_are_trained_and_what_tools_answer_is_not(name: str, tokenizer_with: Any):
    tokenizer = tokenizer_with(name)
    sequences = encode_sample(tokenizer, TOOL_TALK, end_ids=ends_of(tokenizer))
    texts = trained_parts(tokenizer, sequences)
    assert len(texts) == 2
    assert '"add"' in texts[0]
    assert '"a": 1' in texts[0]
    assert texts[1].removeprefix("<think>\n").removeprefix("\n</think>\n\n").startswith("4")
    assert '"add"' in render(tokenizer, TOOL_TALK, TOOL_TALK.messages[:1])  # the offer, in the prompt


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - WITH_TOOLS))
def test_a_template_without_tools_says_so(name: str, tokenizer_with: Any):
    with pytest.raises(DataError, match=r"^t:1: .* has no place for (tools|calls of tools): qwen2_5"):
        encode_sample(tokenizer_with(name), TOOL_TALK, end_ids=[0])


def test_thoughts_of_the_last_answer_are_learnt_and_earlier_ones_forgotten(tokenizer_with: Any):
    thinking = Message("assistant", "<think>\nhm\n</think>\n\n4")
    for name in ("qwen3", "deepseek_r1", "deepseek_r1_distill"):
        tokenizer = tokenizer_with(name)
        first, second = encode_sample(
            tokenizer, Sample((SUM, thinking, HI, thinking), source="d:1"), end_ids=ends_of(tokenizer)
        )
        assert marked_text(tokenizer, first).count("hm") == 1
        assert marked_text(tokenizer, second).count("hm") == 1
        for each in (first, second):
            assert "hm\n</think>\n\n4" in marked_text(tokenizer, each).partition("«")[2]


def test_a_default_system_text_stands_where_none_is_given(tokenizer_with: Any):
    for name, expected in (
        ("qwen2", "You are a helpful"),
        ("qwen2_5", "You are Qwen"),
        ("qwen_qwq", "harmless"),
        ("qwen2_5_math", "\\boxed{}"),
    ):
        text = render(tokenizer_with(name), Sample((HI,)), [HI])
        assert text.startswith("<|im_start|>system\n")
        assert expected in text
    assert render(tokenizer_with("yi"), Sample((HI,)), [HI]) == "<|im_start|>user\nHi<|im_end|>\n"


def test_a_file_or_the_nearest_name(tmp_path: Path, tokenizer_with: Any):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert chat_template(str(tmp_path / "mine.jinja")).startswith("{% for m")
    with pytest.raises(RecipeError, match=r"data\.template: llama_3 is neither a file .*; did you mean llama3\?"):
        chat_template("llama_3")


SWITCHED = "{% if loud | default(true) %}!{% endif %}{% for m in messages %}{{ m['content'] }}{{ mood }}{% endfor %}"


def test_arguments_become_a_part_of_the_template(make_tokenizer: Any):
    for template in (SWITCHED, {"default": SWITCHED, "tool_use": SWITCHED}):
        tokenizer = make_tokenizer(chat_template=template)
        assert render(tokenizer, Sample((HI,)), [HI]) == "!Hi"
        use_template(tokenizer, None, {"loud": False, "mood": "it's"})
        assert render(tokenizer, Sample((HI,)), [HI]) == "Hiit's"
        said = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, loud=True)
        assert said == "!Hiit's", "what a server says stands before it"


def test_arguments_that_no_template_could_take(make_tokenizer: Any):
    tokenizer = make_tokenizer(chat_template=SWITCHED)
    with pytest.raises(RecipeError, match=r"data\.template_arguments: the chat template does not use enable_thinking"):
        use_template(tokenizer, None, {"enable_thinking": False})
    with pytest.raises(RecipeError, match="a b is no name that a template could use"):
        use_template(tokenizer, None, {"a b": False})


def test_files_that_are_no_templates(tmp_path: Path, tokenizer_with: Any):
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"data\.template: .*bytes\.jinja cannot be read: 'utf-8' codec"):
        chat_template(str(tmp_path / "bytes.jinja"))
    for mark in ("", "{% generation %}{% endgeneration %}"):  # rendered by other ways
        (tmp_path / "half.jinja").write_text(f"{mark}\n{{% for m in messages %}}{{{{ m['content']")
        tokenizer = tokenizer_with(str(tmp_path / "half.jinja"))
        with pytest.raises(DataError, match=r"^The chat template is not valid Jinja: line 2: unexpected end"):
            encode_sample(tokenizer, Sample((HI, HELLO), source="d:1"), end_ids=[0])


@pytest.mark.parametrize("name", PRESETS)
def test_odd_dialogues_are_tokenised_or_refused(name: str, tokenizer_with: Any):
    """Nothing but a DataError, whoever speaks when; and an empty answer still teaches to stop."""
    tokenizer = tokenizer_with(name)
    empty = HELLO if name == "empty_no_special_tokens" else Message("assistant", "")  # which has no end of its own
    for turns in ((HI, empty), (HI, HI, HELLO), (HELLO,), (HI, HELLO, HELLO), (HI, SYSTEM, HELLO)):
        outcome = outcome_of(lambda: encode_sample(tokenizer, dialogue(name, *turns), end_ids=ends_of(tokenizer)))  # noqa: B023
        if isinstance(outcome, DataError):
            assert str(outcome).startswith("d:1: ")
        else:
            assert all(any(each.loss_mask) for each in outcome)


def outcome_of(encode: Any) -> Any:
    """What encoding gives, or the DataError it ends with; any other exception is a failure."""
    try:
        return encode()
    except DataError as error:
        return error
