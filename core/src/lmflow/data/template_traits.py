"""What is special about a chat template, found by giving it small dialogues: how it takes turns, how answers end.

Templates are programs without a specification. Asking one once is cheaper and surer than guessing from its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lmflow.data.facts import Fact, alike, facts_of, locate
from lmflow.data.per_tokenizer import PerTokenizer
from lmflow.data.sample import Message
from lmflow.data.template_limits import TemplateLimitError, check_length, limited_time
from lmflow.data.turn_forms import TurnForm, as_dicts
from lmflow.errors import DataError

ASKED, SAID = "a first question", "a probing answer"
ARGUMENT = "probed_argument"
CALL = {"type": "function", "id": "probe0001", "function": {"name": "probed_call", "arguments": {ARGUMENT: "Oslo"}}}
OFFER = {
    "type": "function",
    "function": {
        "name": "offered_tool",
        "description": "What is offered.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
TURN_MARK = re.compile("<[|\uff5c][^<>|\uff5c\\s]+[|\uff5c]>")  # also the wide bar of DeepSeek's
PART = re.compile(r"""["']type["']: ?["']text["']""")
QUESTION, ANSWER = Message("user", ASKED), Message("assistant", SAID)
CALLING = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "a result", name="probed_tool", tool_call_id="probe0001")
INSIDE = Message("assistant", f"<think>\nquiet reasoning\n</think>\n\n{SAID}")
BESIDE = Message("assistant", SAID, thinking="quiet reasoning")


@dataclass(frozen=True)
class TemplateTraits:
    """How a tokenizer's chat template takes turns, and the special tokens that end an answer in it."""

    form: TurnForm
    ends: tuple[str, ...]
    """What follows an answer: the first is what follows one that others come after."""
    call_end: str | None
    """What follows a call of a tool, where that is another token."""
    special: re.Pattern[str]
    """All special tokens of the tokenizer but the one that begins a text."""
    faults: tuple[str, ...] = ()
    """What makes the template unfit for this tokenizer, or for asking."""
    heading: str = ""
    """What stands behind a question where its answer is asked for."""
    thinks_before_prompt: bool = False
    """Whether thoughts are written in front of what answers are asked with, so that nobody asks for them."""


def turn_end_ids(tokenizer: Any) -> list[int]:
    """The tokens that end an answer or a call in the tokenizer's chat template; none without a template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return []
    traits = traits_of(tokenizer)
    texts = [*traits.ends, *([traits.call_end] if traits.call_end else [])]
    return [int(tokenizer.convert_tokens_to_ids(text)) for text in texts]


def template_faults(tokenizer: Any) -> tuple[str, ...]:
    """What makes the tokenizer's chat template unfit for it, or for asking; nothing without a template."""
    return () if getattr(tokenizer, "chat_template", None) is None else traits_of(tokenizer).faults


def apply(
    tokenizer: Any, turns: Sequence[Message], form: TurnForm, tools: Iterable[Any] = (), *, prompt: bool = False
) -> str:
    """The template's text of `turns`; raises whatever the template raises, and TemplateLimitError."""
    offered = [dict(tool) for tool in tools]
    with_tools = {"tools": offered} if offered else {}
    with limited_time():
        text: str = tokenizer.apply_chat_template(
            as_dicts(turns, form), tokenize=False, add_generation_prompt=prompt, **with_tools
        )
    check_length(text, turns, offered)
    return text


def apply_marked(
    tokenizer: Any, template: str, turns: Sequence[Message], form: TurnForm, tools: Iterable[Any] = ()
) -> tuple[str, list[tuple[int, int]]]:
    """The same, of a template with `{% generation %}`, and the characters that these marks enclose."""
    from transformers.utils.chat_template_utils import render_jinja_template

    offered = [dict(tool) for tool in tools]
    with limited_time():
        [text], [spans] = render_jinja_template(
            conversations=[as_dicts(turns, form)],
            tools=offered or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=False,
            **tokenizer.special_tokens_map,
        )
    check_length(text, turns, offered)
    return text, [(start, end) for start, end in spans if start < end]


def special_texts(tokenizer: Any) -> list[str]:
    """The special tokens, wherever the tokenizer says that they are, without the one that begins a text."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    if tokenizer.bos_token != tokenizer.eos_token:
        found.discard(tokenizer.bos_token)
    return sorted(found, key=lambda text: (-len(text), text))


def _ask(tokenizer: Any) -> TemplateTraits:
    """The traits of the tokenizer's template."""
    texts = special_texts(tokenizer)
    special = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
    form = _form(tokenizer)
    ends = dict.fromkeys(_answer_ends(tokenizer, form, special))
    faults = tuple(_faults(tokenizer, form, special))
    thinks_first = _thinks_before_prompt(tokenizer, form, special)
    call_end, heading = _call_end(tokenizer, form, special), _heading(tokenizer, form)
    return TemplateTraits(form, tuple(ends), call_end, special, faults, heading, thinks_first)


traits_of = PerTokenizer(_ask)
"""The traits of a tokenizer's template."""


# How it takes turns


def _form(tokenizer: Any) -> TurnForm:
    """The first form that keeps what is said, and calls if any does."""
    contents = [TurnForm(content_as_parts=each) for each in (False, True)]
    read = [each for each in contents if _keeps(tokenizer, [QUESTION, ANSWER], each)]
    read = [each for each in read if not _writes_parts(tokenizer, each)] or contents[:1]
    with_calls = (each for form in read for each in _forms_of_calls(tokenizer, form))
    form = next(with_calls, read[0])
    return replace(form, thoughts=_thoughts(tokenizer, form))


def _forms_of_calls(tokenizer: Any, form: TurnForm) -> list[TurnForm]:
    """The forms of calls in which the template keeps them; those that come out as Python writes an object last."""
    forms = [
        replace(form, ids_name_calls=named, arguments_as_text=text)
        for named, text in product((False, True), (False, True))
    ]
    kept = [each for each in forms if _keeps(tokenizer, [QUESTION, CALLING, RESULT, ANSWER], each)]
    return sorted(kept, key=lambda each: _writes_python(tokenizer, each))


def _thoughts(tokenizer: Any, form: TurnForm) -> str:
    """Where the template reads thoughts, beside the content first: only there it knows them for what they are."""
    for thoughts, answer in (("beside", BESIDE), ("inside", INSIDE)):
        if _keeps(tokenizer, [QUESTION, answer], form):
            return thoughts
    return "as given"


def _heading(tokenizer: Any, form: TurnForm) -> str:
    with suppress(Exception):  # as in `_text`
        return apply(tokenizer, [QUESTION], form, prompt=True).rpartition(ASKED)[2]
    return ""


def _thinks_before_prompt(tokenizer: Any, form: TurnForm, special: re.Pattern[str]) -> bool:
    thoughtful, quiet = (_text(tokenizer, [QUESTION, answer], form) for answer in (BESIDE, ANSWER))
    with suppress(Exception):  # as in `_text`
        asked = apply(tokenizer, [QUESTION], form, prompt=True)
        return place_of_thought(special, thoughtful or asked, quiet or "", asked) is not None
    return False


def place_of_thought(special: re.Pattern[str], thoughtful: str, quiet: str, asked: str) -> int | None:
    """Where a thought is put into a text that begins with what is asked, before the end of that; None if it is not.

    `thoughtful` is the text with the thought and `quiet` the one without. The place is right behind a special token.
    """
    if not quiet.startswith(asked) or thoughtful.startswith(asked):
        return None
    same = alike(thoughtful, asked)
    place = max((found.end() for found in special.finditer(asked, 0, same)), default=0)
    return place if place and thoughtful.endswith(quiet[place:]) else None


def _keeps(tokenizer: Any, turns: Sequence[Message], form: TurnForm) -> bool:
    """Whether all that the turns say is in the text; not where the template refuses them."""
    text = _text(tokenizer, turns, form)
    facts = [fact for turn in turns if turn.role != "tool" for fact in facts_of(turn)]
    return text is not None and not locate(facts, text, 0, len(text)).missing


def _writes_python(tokenizer: Any, form: TurnForm) -> bool:
    """Whether arguments come out as Python writes an object, which happens to one that the template takes for text."""
    return f"'{ARGUMENT}'" in (_text(tokenizer, [QUESTION, CALLING, RESULT, ANSWER], form) or "")


def _writes_parts(tokenizer: Any, form: TurnForm) -> bool:
    """Whether a list of parts comes out as a list, which happens to one that the template takes for text."""
    return bool(PART.search(_text(tokenizer, [QUESTION, ANSWER], form) or ""))


def _text(tokenizer: Any, turns: Sequence[Message], form: TurnForm) -> str | None:
    """The text of the turns, those with calls beside an offer of tools; None where the template refuses them."""
    tools = [OFFER] if any(turn.tool_calls for turn in turns) else []
    try:
        return apply(tokenizer, turns, form, tools)
    except TemplateLimitError as error:
        raise DataError(f"The chat template cannot be used: {error}. Choose another with --data.template.") from error
    except Exception:  # a template is a program of the model's maker: it can raise anything
        return None


# What it is not fit for


def _faults(tokenizer: Any, form: TurnForm, special: re.Pattern[str]) -> Iterator[str]:
    """What the user should know before anything is trained with the template."""
    whole, upto = (_text(tokenizer, turns, form) for turns in ([QUESTION, ANSWER], [QUESTION]))
    if whole is None or upto is None:
        return
    unknown = [mark for mark in dict.fromkeys(TURN_MARK.findall(whole)) if not _is_token(tokenizer, mark)]
    if unknown:
        yield (
            f"it writes {', '.join(map(repr, unknown[:3]))}, which the tokenizer does not know as tokens, so they are "
            "learnt letter by letter; choose a template that suits the model, or add them with lmflow vocabulary"
        )
    with suppress(Exception):  # as in `_text`
        asked = apply(tokenizer, [QUESTION], form, prompt=True)
        header = whole[len(upto) : whole.find(SAID)]
        if asked == upto and whole.startswith(upto) and special.search(header):
            yield (
                f"it writes {header.strip()!r} before an answer and nothing where an answer is asked for "
                "(add_generation_prompt), so the model has to write that first"
            )


def _is_token(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


# How answers end


def _answer_ends(tokenizer: Any, form: TurnForm, special: re.Pattern[str]) -> Iterator[str]:
    """The special token right after an answer that another question follows, and after the last one."""
    for turns in ([QUESTION, ANSWER, Message("user", "a second question")], [QUESTION, ANSWER]):
        text = _text(tokenizer, turns, form)
        if text is not None and SAID in text:
            found = next_special(special, text, text.index(SAID) + len(SAID))
            yield from [found.group().strip()] if found else []


def next_special(special: re.Pattern[str], text: str, place: int) -> re.Match[str] | None:
    """The special token that follows a place in a text, nothing but white space between."""
    found = special.search(text, place)
    return found if found and not text[place : found.start()].strip() else None


def _call_end(tokenizer: Any, form: TurnForm, special: re.Pattern[str]) -> str | None:
    """What a turn of calls ends with; where it has no end of its own, the special token that the next begins with."""
    upto, whole = (
        _text(tokenizer, turns, form) for turns in ([QUESTION, CALLING], [QUESTION, CALLING, RESULT, ANSWER])
    )
    if upto is None or whole is None or not whole.startswith(upto):
        return None
    after = locate([Fact("", "probed_call"), Fact("", ARGUMENT), Fact("", "Oslo")], upto, 0, len(upto)).end
    own = [found for found in special.finditer(upto, after) if not upto[found.end() :].strip()]
    if own:
        return own[-1].group()
    found = next_special(special, whole, len(upto))
    return found.group() if found else None
