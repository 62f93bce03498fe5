"""Dialogues as text by the model's chat template, and where in it the answers are.

A template may mark answers with `{% generation %}`; where it does not, they are found by rendering the dialogue with
and without its later turns, and only where that leaves no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A dialogue as text. `spans` are the characters of each answer, with what ends it."""

    sample: Sample
    text: str
    spans: tuple[Span, ...]
    answers: tuple[str, ...]
    """What the assistant says in each span."""
    marked: bool
    """Whether the spans are the template's own, rather than found by comparing."""


def renderings(tokenizer: Any, sample: Sample) -> list[Rendering]:
    """The dialogue as text; several, each up to one of its answers, where the template rewrites earlier turns.

    Raises DataError when the template refuses the messages, leaves out tools, or shows no place where answers begin.
    """
    answers = [index for index, turn in enumerate(sample.messages) if turn.role == "assistant"]
    marked = has_marks(tokenizer, sample)
    whole = _marked(tokenizer, sample) if marked else _compared(tokenizer, sample, answers)
    if whole is not None and (not marked or _keeps_earlier_turns(tokenizer, whole, answers)):
        return [whole]
    return [_upto(tokenizer, sample, index, marked) for index in answers]


def render(tokenizer: Any, sample: Sample, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The chat template's text for `messages`; with `prompt`, up to where the assistant begins to speak.

    Raises DataError naming the sample when the template refuses the messages, or leaves out a turn, a tool or a call.
    """
    with_tools = {"tools": [dict(tool) for tool in sample.tools]} if sample.tools else {}
    try:
        text: str = tokenizer.apply_chat_template(
            [as_dict(turn) for turn in messages], tokenize=False, add_generation_prompt=prompt, **with_tools
        )
    except Exception as error:  # a template is a program of the model's maker: it can raise anything
        raise refused(sample, messages, error) from error
    _check_complete(tokenizer, sample, messages, text, prompt)
    return text


def answer_starts(tokenizer: Any, sample: Sample, text: str) -> list[int]:
    """Where in `text`, the rendered prompt of `sample`, the answers before the last one begin."""
    if has_marks(tokenizer, sample):
        return [start for start, _ in _marked(tokenizer, sample, prompt=True).spans]
    earlier = [index for index, turn in enumerate(sample.messages) if turn.role == "assistant"]
    return [len(render(tokenizer, sample, sample.messages[:index], prompt=True)) for index in earlier]


def has_marks(tokenizer: Any, sample: Sample) -> bool:
    """Whether the template that renders the sample says itself which parts are answers."""
    return bool(MARK.search(template_for(tokenizer, sample)))


def template_for(tokenizer: Any, sample: Sample) -> str:
    """The tokenizer's template; of several, the one for dialogues with tools where there are some."""
    own = tokenizer.chat_template
    if isinstance(own, str):
        return own
    chosen: str = tokenizer.get_chat_template(tools=[dict(tool) for tool in sample.tools] or None)
    return chosen


def as_dict(turn: Message) -> dict[str, Any]:
    """A turn as templates take it."""
    made: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        made["tool_calls"] = [dict(call) for call in turn.tool_calls]
    if turn.name is not None:
        made["name"] = turn.name
    if turn.tool_call_id is not None:
        made["tool_call_id"] = turn.tool_call_id
    return made


def refused(sample: Sample, messages: Sequence[Message], error: Exception) -> DataError:
    """The error for messages that a template does not take, or for a template that is not one."""
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return DataError(f"The chat template is not valid Jinja: line {error.lineno}: {error.message}")
    roles = ", ".join(turn.role for turn in messages)
    return DataError(f"{sample.source}: the model's chat template refuses the roles {roles}: {error}")


def _marked(tokenizer: Any, sample: Sample, *, prompt: bool = False) -> Rendering:
    """The text with the spans of the template's own marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        [text], [spans] = render_jinja_template(
            conversations=[[as_dict(turn) for turn in sample.messages]],
            tools=[dict(tool) for tool in sample.tools] or None,
            chat_template=template_for(tokenizer, sample),
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # as in `render`
        raise refused(sample, sample.messages, error) from error
    _check_complete(tokenizer, sample, sample.messages, text, prompt)
    return Rendering(sample, text, tuple((start, end) for start, end in spans if start < end), (), True)


def _keeps_earlier_turns(tokenizer: Any, whole: Rendering, answers: Sequence[int]) -> bool:
    """Whether each earlier answer stands in the whole as the model would have given it."""
    if len(answers) < 2 or len(whole.spans) != len(answers):
        return True  # nothing is earlier, or the template marks other things than answers
    for index, (start, end) in zip(answers[:-1], whole.spans, strict=False):
        upto = _marked(tokenizer, replace(whole.sample, messages=whole.sample.messages[: index + 1]))
        if not upto.spans or upto.spans[-1] != (start, end) or upto.text[:end] != whole.text[:end]:
            return False
    return True


def _compared(tokenizer: Any, sample: Sample, answers: Sequence[int]) -> Rendering | None:
    """The text with spans found by leaving out later turns; None where the template rewrites earlier ones."""
    text = render(tokenizer, sample, sample.messages)
    spans = [_answer_span(tokenizer, sample, index, text) for index in answers]
    known = tuple(span for span in spans if span is not None)
    said = tuple(sample.messages[index].content for index in answers)
    return Rendering(sample, text, known, said, False) if len(known) == len(answers) else None


def _answer_span(tokenizer: Any, sample: Sample, index: int, full: str) -> Span | None:
    """Characters of `full` that answer `index` and its end take up; None if the template rewrote it later on."""
    before = render(tokenizer, sample, sample.messages[:index], prompt=True)
    after = render(tokenizer, sample, sample.messages[: index + 1])
    return (len(before), len(after)) if full.startswith(after) and after.startswith(before) else None


def _upto(tokenizer: Any, sample: Sample, index: int, marked: bool) -> Rendering:
    """The dialogue up to answer `index`, with that answer's span alone: what the model sees when it gives it."""
    upto = replace(sample, messages=sample.messages[: index + 1])
    if marked:
        found = _marked(tokenizer, upto)
        return replace(found, spans=found.spans[-1:])
    text = render(tokenizer, upto, upto.messages)
    span = _answer_span(tokenizer, upto, index, text)
    if span is None:
        raise DataError(
            f"{sample.source}: the model's chat template shows no clear place where answer {index + 1} begins. Choose "
            "a template with --data.template, mark answers in your own with {% generation %}, or use a format without "
            "a template (text2text)."
        )
    return Rendering(upto, text, (span,), (sample.messages[index].content,), False)


def _check_complete(tokenizer: Any, sample: Sample, messages: Sequence[Message], text: str, prompt: bool) -> None:
    """Raise DataError where the text leaves out something of the sample; earlier thoughts it may."""
    if sample.tools or any(turn.tool_calls for turn in messages):
        _check_tools(tokenizer, sample, messages, text)
    _check_turns(tokenizer, sample, messages, text, prompt)


def _check_turns(tokenizer: Any, sample: Sample, messages: Sequence[Message], text: str, prompt: bool) -> None:
    """Raise DataError where the text is the same without a turn that is no answer, as with roles a template ignores."""
    for index, turn in enumerate(messages):
        said = turn.content.strip()
        # What a tool answers is often a number, which stands in other turns too.
        if turn.role == "assistant" or not said or (turn.role != "tool" and said in text):
            continue
        others = [*messages[:index], *messages[index + 1 :]]
        if _plain_text(tokenizer, sample, others, text, prompt=prompt) == text:
            raise DataError(
                f"{sample.source}: the model's chat template leaves out turn {index + 1}, of role {turn.role}. "
                "Choose one that has that role with --data.template."
            )


def _check_tools(tokenizer: Any, sample: Sample, messages: Sequence[Message], text: str) -> None:
    """Raise DataError where the text leaves out the tools that are offered, or a call that is made."""
    lost = None
    called = [str(call["function"]["name"]) for turn in messages for call in turn.tool_calls]
    without_calls = [replace(turn, tool_calls=()) for turn in messages]
    if called and text.startswith(_plain_text(tokenizer, sample, without_calls, text)):
        lost = f"the call of {called[0]}"
    first = next((index for index, turn in enumerate(messages) if turn.role == "assistant"), len(messages))
    if sample.tools and text.startswith(_plain_text(tokenizer, replace(sample, tools=()), messages[:first], text)):
        lost = f"the tool {sample.tools[0]['function']['name']}"
    if lost is not None:
        raise DataError(
            f"{sample.source}: the model's chat template leaves out {lost}. Choose one that has tools with "
            "--data.template (qwen2_5, llama3_for_tool, …)."
        )


def _plain_text(
    tokenizer: Any, sample: Sample, messages: Sequence[Message], whole: str, *, prompt: bool = False
) -> str:
    """The messages as the template writes them, to be compared with `whole`; not that where it refuses them."""
    with_tools = {"tools": [dict(tool) for tool in sample.tools]} if sample.tools else {}
    try:
        text: str = tokenizer.apply_chat_template(
            [as_dict(turn) for turn in messages], tokenize=False, add_generation_prompt=prompt, **with_tools
        )
    except Exception:  # as in `render`
        return f"{whole} and more"
    return text
