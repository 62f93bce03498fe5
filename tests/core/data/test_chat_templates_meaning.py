# ruff: noqa: RUF001 - DeepSeek's bars are wide
"""What a template by name is given stands in its text, in its place and order, or is refused: meaning, not spelling."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from lmflow.data.chat_templates import PRESETS, chat_template

Turn = dict[str, Any]
THINKING = {"qwen3", "deepseek_r1", "deepseek_r1_distill"}
OFFERS = {"hymba", "qwen2_5", "qwen2_5_1m", "qwen2_5_math", "qwen_qwq", "qwen2_for_tool", "qwen3", "llama3_for_tool"}
CALLS = (OFFERS - {"hymba"}) | {"deepseek_v3", "deepseek_r1", "deepseek_r1_distill"}
ONE_CALL_AND_NO_TEXT = {"llama3_for_tool"}
NO_RESULTS = {"deepseek", "deepseek_v2", "gemma", "gemma3", "llama2", "phi3"}
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "</s>")
WITHOUT_END = {"chatglm3", "empty_no_special_tokens"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the sky.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def user(content: str) -> Turn:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def calls(*places: str, content: str = "", **more: Any) -> Turn:
    made = [{"type": "function", "function": {"name": "weather", "arguments": {"place": place}}} for place in places]
    return says(content, tool_calls=made, **more)


def result(content: str) -> Turn:
    return {"role": "tool", "content": content, "name": "weather"}


SYSTEM = {"role": "system", "content": "Stay brief."}
ASK, MORE = user("How is Wien?"), user("And Graz?")
PLAIN = {
    "one": [ASK, says("Mild.")],
    "two": [ASK, says("Mild."), MORE, says("Wet.")],
    "unicode": [user("„Größe“ 你好?"), says("naïve 🙂 好。")],
}
THOUGHT = {
    "lines": says("<think>\nI recall spring.\n</think>\n\nMild."),
    "none": says("<think>I recall spring.</think>Mild."),
    "many": says("\n <think>\n\n  I recall spring. \n\n</think>\n\n\n Mild."),
    "one side": says("<think>\nI recall spring.</think>Mild."),
    "prompt opened": says("I recall spring.\n</think>\n\nMild."),
    "two paragraphs": says("<think>I recall\n\nspring.</think>Mild."),
}
BESIDE = {
    "reasoning_content": says("Mild.", reasoning_content="I recall spring."),
    "thinking": says("Mild.", thinking="\nI recall spring.\n"),
    "both": says("<think>I recall spring.</think>Mild.", thinking="I recall spring."),
}
CALLED = {
    "one call": [ASK, calls("Wien")],
    "answered": [ASK, calls("Wien"), result("8 degrees"), says("Mild.")],
    "two rounds": [ASK, calls("Wien"), result("8 degrees"), calls("Graz"), result("9 degrees"), says("Both mild.")],
    "second question": [ASK, calls("Wien"), result("8 degrees"), says("Mild."), MORE, calls("Graz")],
    "questioned after a result": [ASK, calls("Wien"), result("8 degrees"), MORE, says("Wet.")],
}
TEXT_OR_SEVERAL = {
    "parallel": [ASK, calls("Wien", "Graz"), result("8 degrees"), result("9 degrees"), says("Mild.")],
    "text beside": [ASK, calls("Wien", content="Let me look."), result("8 degrees"), says("Mild.")],
}
THOUGHT_CALLS = {
    "within": [ASK, calls("Wien", content="<think>Look there.</think>"), result("8 degrees"), says("Mild.")],
    "everywhere": [
        ASK,
        calls("Wien", content="<think>Look there.</think>Let me look."),
        result("8 degrees"),
        says("<think>So it is.</think>Mild."),
    ],
    "beside": [ASK, calls("Wien", thinking="Look there."), result("8 degrees"), says("Mild.", thinking="So it is.")],
}


@dataclass(frozen=True)
class Written:
    """A dialogue up to an answer as a template writes it: before that answer, the answer, after it."""

    before: str
    answer: str
    after: str


def text_of(name: str, turns: list[Turn], tools: Any = None, *, prompt: bool = False) -> tuple[str, Any]:
    """The text, and where its marks stand."""
    [text], [spans] = render_jinja_template(
        conversations=[turns],
        tools=tools,
        chat_template=chat_template(name),
        return_assistant_tokens_mask=True,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    return text, spans


def written(name: str, turns: list[Turn], tools: Any = None) -> Written:
    """The dialogue, whose last turn is an answer; what is asked is how the text begins, and where its marks do."""
    text, spans = text_of(name, turns, tools)
    begin, end = spans[-1]
    asked, _ = text_of(name, turns[:-1], tools, prompt=True)
    assert text[:begin] == asked
    assert not text[end:].replace("</s>", "").strip()
    return Written(text[:begin], text[begin:end], text[end:])


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def thought_of(turn: Turn) -> str:
    if beside := turn.get("reasoning_content") or turn.get("thinking"):
        return str(beside)
    before, closed, _ = turn["content"].partition("</think>")
    return before.replace("<think>", "") if closed else ""


def said_by(turn: Turn) -> str:
    return str(turn["content"]).rpartition("</think>")[2]


def facts_of(turn: Turn, *, thoughts: bool) -> list[str]:
    """What must be found of a turn, in this order."""
    found = [thought_of(turn) if thoughts else "", said_by(turn)]
    for call in turn.get("tool_calls", ()):
        found += [call["function"]["name"], json.dumps(call["function"]["arguments"])]
    return [squeezed(fact) for fact in found if fact.strip()]


def assert_in_order(text: str, facts: list[str]) -> None:
    place, text = 0, squeezed(text)
    for fact in facts:
        assert fact in text[place:], f"{fact} is not behind what precedes it: {text}"
        place = text.index(fact, place) + len(fact)


def answers(turns: list[Turn]) -> list[list[Turn]]:
    """The dialogue up to each of its answers."""
    return [turns[: index + 1] for index, turn in enumerate(turns) if turn["role"] == "assistant"]


def assert_holds(name: str, turns: list[Turn], tools: Any = None) -> None:
    for upto in answers(turns):
        made = written(name, upto, tools)
        earlier = [fact for turn in upto[:-1] for fact in facts_of(turn, thoughts=name not in THINKING)]
        assert_in_order(made.before, earlier)
        assert_answer(name, made, upto[-1])


def assert_answer(name: str, made: Written, turn: Turn) -> None:
    assert_in_order(made.answer, facts_of(turn, thoughts=True))
    assert made.answer == made.answer.rstrip()
    assert name in WITHOUT_END or made.answer.endswith(ENDS)
    assert name in WITHOUT_END or sum(made.answer.count(end) for end in ENDS) == 1
    if name in THINKING:
        assert_thought(made, turn)


def assert_thought(made: Written, turn: Turn) -> None:
    """One thought between marks, and what is said right behind it; an empty one only where there is none."""
    opened = "<think>" if made.before.endswith("<think>\n") else ""
    thought, closed, said = squeezed(opened + made.answer).rpartition("</think>")
    assert thought == (f"<think>{squeezed(thought_of(turn))}" if closed else "")
    assert closed or not thought_of(turn)
    assert said.startswith(squeezed(said_by(turn)))


def refusal(name: str, turns: list[Turn], tools: Any = None) -> str:
    with pytest.raises(TemplateError) as caught:
        text_of(name, turns, tools)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", PLAIN)
def test_questions_and_answers(name: str, kind: str):
    assert_holds(name, PLAIN[kind])


@pytest.mark.parametrize("name", PRESETS)
def test_an_answer_may_be_empty(name: str):
    text, [(begin, end)] = text_of(name, [ASK, says("")]) if name != "empty_no_special_tokens" else ("", [(0, 0)])
    assert text[begin:end].endswith(ENDS) or name in WITHOUT_END


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_system_text_stands_before_the_first_question(name: str, kind: str):
    turns = [SYSTEM, *PLAIN[kind]]
    if name == "gemma":
        assert "System role not supported" in refusal(name, turns)
    else:
        assert_holds(name, turns)


@pytest.mark.parametrize("name", PRESETS)
def test_a_later_system_text_is_kept_in_its_place_or_refused(name: str):
    turns = [ASK, says("Mild."), SYSTEM, MORE, says("Wet.")]
    if name in {"gemma", "gemma3", "llama2", "hymba"} or PRESETS[name][0] == "deepseek_v3":
        assert re.search("speak in turn|before all other turns", refusal(name, turns))
    else:
        assert_holds(name, turns)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", THOUGHT)
def test_a_thought_is_a_thought_whatever_space_is_around_its_marks(name: str, kind: str):
    assert_holds(name, [ASK, THOUGHT[kind]])
    assert_holds(name, [SYSTEM, ASK, THOUGHT[kind], MORE, says("<think>Rain.</think>Wet.")][name == "gemma" :])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", BESIDE)
def test_thoughts_beside_an_answer_are_in_their_place_or_refused(name: str, kind: str):
    turns = [ASK, BESIDE[kind], MORE, says("Wet.", thinking="Rain.")]
    if name in THINKING:
        assert_holds(name, turns)
    else:
        assert "no place for thoughts beside an answer" in refusal(name, turns)


@pytest.mark.parametrize("name", sorted(THINKING))
def test_thoughts_that_contradict_each_other_or_never_end_are_refused(name: str):
    assert "keep one of the two" in refusal(name, [ASK, says("<think>a</think>b", thinking="c")])
    assert "never closes" in refusal(name, [ASK, says("<think>I recall")])


@pytest.mark.parametrize("name", sorted(THINKING))
def test_marks_within_an_answer_are_words_of_it(name: str):
    for words in ("R1 writes <think> and </think>.", "<think>so</think>R1 writes <think> and </think>."):
        made = written(name, [ASK, says(words)])
        assert squeezed("R1 writes <think> and </think>.") in squeezed(made.answer)


@pytest.mark.parametrize("name", sorted(THINKING))
def test_the_thoughts_of_earlier_answers_are_forgotten(name: str):
    cut_off = says("<think>I recall")  # an answer that reached its limit of tokens, in a chat that goes on
    for first in (*THOUGHT.values(), *BESIDE.values(), cut_off):
        assert "recall" not in text_of(name, [ASK, first, MORE], prompt=True)[0]


@pytest.mark.parametrize("name", PRESETS)
def test_tools_are_offered_or_refused(name: str):
    turns = [ASK, says("Mild.")]
    if name in OFFERS:
        assert_holds(name, turns, [TOOL])
        before = squeezed(written(name, turns, [TOOL]).before)
        assert all(fact in before for fact in ('"weather"', '"Tellsthesky."', '"place":{"type":"string"}'))
    else:
        assert "no place for tools" in refusal(name, turns, [TOOL])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", [*CALLED, *TEXT_OR_SEVERAL])
@pytest.mark.parametrize("arguments", [dict, json.dumps])
def test_calls_and_results_stand_in_their_place_or_are_refused(name: str, kind: str, arguments: Any):
    turns = json.loads(json.dumps((CALLED | TEXT_OR_SEVERAL)[kind]))
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        call["function"]["arguments"] = arguments(call["function"]["arguments"])
    tools = [TOOL] if name in OFFERS else None
    if name not in CALLS:
        assert "no place for calls of tools" in refusal(name, turns)
    elif kind in TEXT_OR_SEVERAL and name in ONE_CALL_AND_NO_TEXT:
        assert re.search("single tool-calls|text beside a call", refusal(name, turns, tools))
    else:
        assert_holds_calls(name, turns, tools)


def assert_holds_calls(name: str, turns: list[Turn], tools: Any) -> None:
    """Arguments are compared as objects, however they were handed over."""
    for call in (call for turn in turns for call in turn.get("tool_calls", ())):
        given = call["function"]["arguments"]
        assert squeezed(given if isinstance(given, str) else json.dumps(given)) in squeezed(
            text_of(name, turns, tools)[0]
        )
        call["function"]["arguments"] = json.loads(given) if isinstance(given, str) else given
    assert_holds(name, turns, tools)


@pytest.mark.parametrize("name", sorted(CALLS - ONE_CALL_AND_NO_TEXT))
@pytest.mark.parametrize("kind", THOUGHT_CALLS)
def test_thoughts_before_calls(name: str, kind: str):
    tools = [TOOL] if name in OFFERS else None
    if kind == "beside" and name not in THINKING:
        assert "thoughts beside an answer" in refusal(name, THOUGHT_CALLS[kind], tools)
    else:
        assert_holds(name, THOUGHT_CALLS[kind], tools)


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_tool_returns_is_written_or_refused(name: str):
    turns = [ASK, result("8 degrees"), says("Mild.")]
    if name in NO_RESULTS:
        assert re.search("role tool|speak in turn", refusal(name, turns))
    else:
        assert_holds(name, turns)


def test_rounds_of_tools_are_opened_and_closed():
    text, _ = text_of("deepseek_v3", [ASK, calls("Wien"), result("8"), MORE, calls("Graz"), result("9"), says("Wet.")])
    assert text.count("<｜tool▁outputs▁begin｜>") == text.count("<｜tool▁outputs▁end｜>") == 2
