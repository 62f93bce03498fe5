"""Answers put after the prompt that a model is asked with."""

from __future__ import annotations

import re

import pytest

from lmflow.data.after_prompt import put_after_heading, put_after_prompt

START = "q<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("asked", "said", "joined"),
    [
        ("<think>\n", "a", "<think>\n\n</think>\n\na"),
        ("<think>", "</think>a", "<think></think>a"),
        ("<think>\n", "<think></think>a", "<think>\n</think>a"),
        ("<think></think>", "</think>a", "<think></think>a"),
        ("<think>\n\n</think>\n\n", "a", "<think>\n\n</think>\n\na"),
        ("<|channel>thought\n<channel|>", "a", "<|channel>thought\n<channel|>a"),
    ],
)
def test_what_the_prompt_opens_is_closed_once(asked: str, said: str, joined: str):
    found = put_after_prompt(START + said, START + asked)
    assert found is not None
    assert found.text == START + joined
    assert found.text[: found.prompt] == START + asked


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (START + "a", START),
        (START + "<think>\nhm</think>a", START + "<think>\n"),
        (START + "a", START + "Let me think:"),
        (START + "a", START + "\n"),
        ("user: q bot: a", "user: q\n\nbot:"),
    ],
)
def test_nothing_else_is_put_together(text: str, prompt: str):
    assert put_after_prompt(text, prompt) is None


def test_places_move_with_what_they_stand_at():
    text, prompt = START + "answer<|im_end|>", START + "<think>\n"
    found = put_after_prompt(text, prompt)
    assert found is not None
    begin, end = (found.moved(text.index(each), len(text)) for each in ("answer", "<|im_end|>"))
    assert found.text[begin:end] == "\n</think>\n\nanswer", "what is trained begins where the prompt ends"
    assert found.moved(2, len(text)) == 2


SPECIAL = re.compile(r"\[/?INST\]|<\|im_start\|>|</s>")


@pytest.mark.parametrize(
    ("text", "prompt", "joined"),
    [
        ("[INST]q[/INST] a</s>", "[INST]s q[/INST]", "[INST]s q[/INST] a</s>"),
        (
            "[INST]q[/INST]a</s>[INST]r[/INST]b",
            "[INST]q[/INST]a</s>[INST]s r[/INST]",
            "[INST]q[/INST]a</s>[INST]s r[/INST]b",
        ),
        ("q<|im_start|>assistant\na", "sq<|im_start|>assistant\n", "sq<|im_start|>assistant\na"),
    ],
)
def test_what_is_under_the_last_heading_is_put_after_a_prompt_that_ends_with_it(text: str, prompt: str, joined: str):
    found = put_after_heading(text, prompt, SPECIAL)
    assert found is not None
    assert found.text == joined
    assert found.text[: found.prompt] == prompt
    assert found.moved(len(text) - 1, len(text)) == len(joined) - 1


def test_a_heading_may_be_plain_text():
    found = put_after_heading("[q] bot:a", "[s q] bot:", SPECIAL, " bot:")
    assert found is not None
    assert found.text == "[s q] bot:a"
    assert put_after_heading("[q] bot:a", "[s q] bot: ", SPECIAL, " bot:") is None


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("[INST]q[/INST]a", "[INST]q[/INST]"),  # as it is
        ("[INST]q[/INST]a", "[INST]q[/INST] "),  # another heading
        ("bot: a", "s bot: "),  # no special token
    ],
)
def test_another_heading_is_none(text: str, prompt: str):
    assert put_after_heading(text, prompt, SPECIAL) is None
