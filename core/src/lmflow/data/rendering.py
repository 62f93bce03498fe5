"""Dialogues as text by the model's chat template, and which parts of it are answers.

What a model is asked is the template's own prompt, so an answer is trained in a text that begins with that prompt. Many
templates write earlier turns otherwise than the last (without their thoughts, or with tools before the last question
alone). Answers whose prompts all begin one text share it; the others have a text of their own. Only a thought that a
template writes in a turn of its own, in front of what it asks answers with, follows no prompt and is trained there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from lmflow.data.after_prompt import AfterPrompt, put_after_heading, put_after_prompt
from lmflow.data.facts import Fact, Located, facts_of, locate, tool_facts
from lmflow.data.rendering_errors import left_out, lost, no_end, other_prompt, refused
from lmflow.data.sample import Message, Sample
from lmflow.data.template_traits import (
    TemplateTraits,
    apply,
    apply_marked,
    next_special,
    place_of_thought,
    traits_of,
)
from lmflow.data.turn_forms import without_thought
from lmflow.errors import DataError

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """Where an answer is in a text, in characters."""

    turn: int
    """Its place among the messages."""
    start: int
    """Where its prompt ends."""
    spans: tuple[Span, ...]
    """What is trained: all that the model says, with the token that ends it; or what the template's marks enclose."""
    ended: bool
    """Whether that has a special token at its end."""
    missing_end: str | None = None
    """The token to end it with, where the template has one and writes none here."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A dialogue as text, and the answers that are trained in it."""

    sample: Sample
    text: str
    answers: tuple[RenderedAnswer, ...]
    unlearnt: tuple[Span, ...] = ()
    """Where the assistant's turns are that are not to be learnt."""
    literal: tuple[Span, ...] = ()
    """Special tokens that somebody says: characters like others."""


def renderings(tokenizer: Any, sample: Sample, *, apart: bool = False) -> list[Rendering]:
    """The dialogue as text; several texts, each up to one of its answers, where one cannot hold all: see above.

    With `apart` every answer has its own. Turns with `is_target` false are no answers to train. Raises DataError when
    the template refuses the messages, leaves out anything that is said, or writes an answer after another prompt than
    the one it gives.
    """
    dialogue = Dialogue(tokenizer, sample)
    left = [index for index, turn in enumerate(sample.messages) if turn.role == "assistant" and turn.is_target]
    if not left:
        text = dialogue.complete(len(sample.messages))
        return [Rendering(sample, text, (), dialogue.unlearnt(text, len(sample.messages)))]
    found: list[Rendering] = []
    while left:
        made = dialogue.rendering(left[-1:] if apart else left, whole=not found)
        held = {answer.turn for answer in made.answers}
        left = [index for index in left if index not in held]
        found.insert(0, made)
    return found


def render(tokenizer: Any, sample: Sample, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The chat template's text for `messages`; with `prompt`, up to where the assistant begins to speak.

    Raises DataError naming the sample when the template refuses the messages, or leaves out a tool or a turn that is no
    answer.
    """
    return Dialogue(tokenizer, replace(sample, messages=tuple(messages))).complete(len(messages), prompt=prompt)


def has_marks(tokenizer: Any, sample: Sample) -> bool:
    """Whether the template that renders the sample says itself which parts are answers."""
    return _has_marks(template_for(tokenizer, sample))


@lru_cache
def _has_marks(template: str) -> bool:
    return bool(MARK.search(template))


def template_for(tokenizer: Any, sample: Sample) -> str:
    """The tokenizer's template; of several, the one for dialogues with tools where there are some."""
    own = tokenizer.chat_template
    if isinstance(own, str):
        return own
    chosen: str = tokenizer.get_chat_template(tools=[dict(tool) for tool in sample.tools] or None)
    return chosen


@dataclass
class Dialogue:
    """A sample and the template that writes it; each beginning of it is written once."""

    tokenizer: Any
    sample: Sample
    _texts: dict[tuple[int, bool], str] = field(default_factory=dict)
    _stops: dict[int, int] = field(default_factory=dict)
    _repeats: dict[int, int] = field(default_factory=dict)
    """The first other turn that says what a turn says; their number where none does."""
    _facts: dict[int, list[Fact]] = field(default_factory=dict)
    _same: dict[int, int] = field(default_factory=dict)
    """How much of so many turns, the last being put after its prompt, is as the template wrote it."""
    _prompts: dict[int, str] = field(default_factory=dict)
    _thought_ends: dict[int, int] = field(default_factory=dict)
    """Where the answers begin whose thoughts stand in front of what they are asked with."""
    _marked: dict[int, list[Span]] = field(default_factory=dict)
    """What the template marks of so many turns."""

    @cached_property
    def traits(self) -> TemplateTraits:
        """How the template takes turns, and how answers end in it."""
        return traits_of(self.tokenizer)

    def text(self, count: int, *, prompt: bool = False) -> str:
        """The first `count` turns; with `prompt`, up to where the assistant begins to speak."""
        key = (count, prompt)
        if key not in self._texts:
            try:
                self._texts[key] = self._written(count, prompt)
            except Exception as error:  # a template is a program of the model's maker: it can raise anything
                raise refused(self.sample, error) from error
            if not prompt and count > 1 and self.sample.messages[count - 1].role == "assistant":
                self._put_after_prompt(count)
        return self._texts[key]

    def _put_after_prompt(self, count: int) -> None:
        """Write the last of `count` turns after its prompt, where the template has it after another."""
        own, asked = self._texts[count, False], self.text(count - 1, prompt=True)
        found = put_after_prompt(own, asked) or self._under_heading(count - 1, own, asked)
        if found is None:
            return
        self._texts[count, False], self._same[count] = found.text, found.same
        if count in self._marked:
            marks = self._marked[count]
            self._marked[count] = [(found.moved(start, len(own)), found.moved(end, len(own))) for start, end in marks]

    def _under_heading(self, index: int, own: str, asked: str) -> AfterPrompt | None:
        """Answer `index` after its prompt, if all of it stands under the prompt's heading, and no other turn."""
        found = put_after_heading(own, asked, self.traits.special, self.traits.heading)
        if found is None:
            return None
        said = self._said(index, found.text, found.prompt)
        if said.missing:
            return None
        begins_it = bool(self._facts[index]) and not found.text[found.prompt : said.begin].strip()
        before = facts_of(self.sample.messages[index - 1])
        return found if begins_it or locate(before, found.text, found.prompt, len(found.text)).missing else None

    def _written(self, count: int, prompt: bool) -> str:
        turns, form, tools = self.sample.messages[:count], self.traits.form, self.sample.tools
        if prompt or not has_marks(self.tokenizer, self.sample):
            return apply(self.tokenizer, turns, form, tools, prompt=prompt)
        text, self._marked[count] = apply_marked(
            self.tokenizer, template_for(self.tokenizer, self.sample), turns, form, tools
        )
        return text

    def complete(self, count: int, *, prompt: bool = False, answers: Iterable[int] = ()) -> str:
        """The same; raises DataError where a turn that is no answer is left out, or a tool before any of `answers`."""
        text = self.text(count, prompt=prompt)
        self._check_tools(text[: min(map(self.start, answers), default=len(text))])
        for index, turn in enumerate(self.sample.messages[:count]):
            if turn.role != "assistant" and turn.content.strip():
                self._check_turn(index, turn, text, count, prompt)
        return text

    def rendering(self, wanted: Sequence[int], *, whole: bool) -> Rendering:
        """The text for the last of `wanted`, and those of the others that it holds as well.

        It has the turns after the last answer too, if it is `whole` and they leave its prompt as it is.
        """
        last, every = wanted[-1], len(self.sample.messages)
        count = every if whole and last + 1 < every and self._fits(last, self.text(every)) else last + 1
        text = self.text(count)
        if not self._fits(last, text):
            raise self._no_prompt(last)
        own = self._same.get(count, len(text))
        held = [index for index in wanted if index == last or self._is_held(index, text[:own])]
        self.complete(count, answers=held)
        return Rendering(self.sample, text, tuple(self._answers(held, count, text)), self.unlearnt(text, count))

    def unlearnt(self, text: str, count: int) -> tuple[Span, ...]:
        """Where those of the first `count` turns are that are not to be learnt; what a template left out is nowhere."""
        turns = [i for i, turn in enumerate(self.sample.messages[:count]) if turn.role == "assistant"]
        chosen = [index for index in turns if not self.sample.messages[index].is_target]
        said = {index: self._said(index, text, 0) for index in chosen}
        return tuple(
            (self.start(index), self._stop(index)) if self._fits(index, text) else (said[index].begin, said[index].end)
            for index in chosen
        )

    # Where an answer is

    def start(self, index: int) -> int:
        """Where answer `index` begins: the length of its prompt. One that nothing precedes may have no prompt."""
        return len(self._prompt(index))

    def _prompt(self, index: int) -> str:
        if index not in self._prompts:
            self._prompts[index] = self._asked(index)
        return self._prompts[index]

    def _asked(self, index: int) -> str:
        try:
            asked = self.text(index, prompt=True)
        except DataError:
            if index:
                raise
            upto = self.text(index + 1)
            return upto[: self._said(index, upto, 0).begin]
        return self._before_thought(index, asked) if self.traits.thinks_before_prompt else asked

    def _before_thought(self, index: int, asked: str) -> str:
        """The prompt; without its last heading where answer `index` has a thought that is written in front of that."""
        upto = self.text(index + 1)
        if upto.startswith(asked):
            return asked
        turns = [*self.sample.messages[:index], without_thought(self.sample.messages[index], self.traits.form)]
        try:
            quiet = apply(self.tokenizer, turns, self.traits.form, self.sample.tools)
        except Exception as error:  # as in `text`
            raise refused(self.sample, error) from error
        place = place_of_thought(self.traits.special, upto, quiet, asked)
        if place is None:
            return asked
        self._thought_ends[index] = len(upto) - len(quiet) + len(asked)
        return asked[:place]

    def _said(self, index: int, text: str, start: int, stop: int | None = None) -> Located:
        """Where a part of a text says what answer `index` says."""
        if index not in self._facts:
            self._facts[index] = facts_of(self.sample.messages[index])
        return locate(self._facts[index], text, start, len(text) if stop is None else stop)

    def _stop(self, index: int) -> int:
        """Where answer `index` ends in the text up to it: after the token that ends it, before what else follows."""
        if index not in self._stops:
            text = self.text(index + 1)
            start = self.start(index)
            said = self._said(index, text, self._thought_ends.get(index, min(start, len(text)))).end
            specials = list(self.traits.special.finditer(text, said))
            ends = [found for found in specials if found.group() in self._ends]
            chosen = ends[:1] or specials[-1:]
            self._stops[index] = chosen[0].end() if chosen else len(text)
        return self._stops[index]

    @cached_property
    def _ends(self) -> frozenset[str]:
        return frozenset([*self.traits.ends, self.tokenizer.eos_token])

    def _fits(self, index: int, text: str) -> bool:
        """Whether `text` begins with the prompt of answer `index` and goes on as the model would have answered."""
        upto = self.text(index + 1)
        prompt = self._prompt(index)
        stop = self._stop(index)
        if not (text.startswith(prompt) and text.startswith(upto[:stop])):
            return False
        return not self._said(index, upto, len(prompt), stop).missing

    def _is_held(self, index: int, text: str) -> bool:
        """Whether a text that others come after trains answer `index` as its own would."""
        return self._stop(index) <= len(text) and self._fits(index, text) and self._ends_in(index, text)

    def _ends_in(self, index: int, text: str) -> bool:
        """Whether an answer that fits has an end in a text, which it can be given only where it is the last."""
        stop = self._stop(index)
        said = self._said(index, text, self.start(index), stop).end
        special = self.traits.special
        return special.search(text, said, stop) is not None or next_special(special, text, stop) is not None

    def _answers(self, held: Sequence[int], count: int, text: str) -> Iterator[RenderedAnswer]:
        """The answers of a text, each with what is trained of it."""
        marks = self._marked.get(count)
        for index in held:
            start, stop = self.start(index), self._stop(index)
            if marks is None:
                spans: tuple[Span, ...] = ((start, stop),)
            else:
                spans = self._inside(index, text, [(max(a, start), min(b, stop)) for a, b in marks])
            yield self._ended(index, start, spans, text)

    def _ended(self, index: int, start: int, spans: tuple[Span, ...], text: str) -> RenderedAnswer:
        """The answer with its end: inside its last span, right behind it, or missing."""
        begin, stop = spans[-1] if spans else (start, start)
        said = max(begin, self._said(index, text, start, stop).end)
        inside = [found.end() for found in self.traits.special.finditer(text, said, stop)]
        behind = next_special(self.traits.special, text, stop)
        if inside:
            stop = inside[-1] if not text[inside[-1] : stop].strip() else stop
        elif behind:
            stop = behind.end()
        spans = (*spans[:-1], (begin, stop)) if spans else ()
        calls = bool(self.sample.messages[index].tool_calls)
        end = (self.traits.call_end if calls else None) or next(iter(self.traits.ends), None)
        return RenderedAnswer(index, start, spans, bool(inside or behind), end)

    # The template's own marks

    def _inside(self, index: int, text: str, marks: Iterable[Span]) -> tuple[Span, ...]:
        """The marked parts of an answer. Raises DataError where what it says is not in them."""
        spans = tuple((start, end) for start, end in marks if start < end)
        inside = "".join(text[start:end] for start, end in spans)
        outside = self._said(index, inside, 0).missing
        if outside:
            raise DataError(
                f"{self.sample.source}: the model's chat template marks answers with {{% generation %}} and leaves "
                f"{outside[0]} of turn {index + 1} outside. Choose another with --data.template."
            )
        return spans

    # What is left out

    def _check_tools(self, text: str) -> None:
        missing = locate(tool_facts(self.sample.tools), text, 0, len(text)).missing
        if missing:
            raise left_out(self.sample, f"the tool {missing[0].text}", "Choose one that has tools")

    def _check_turn(self, index: int, turn: Message, text: str, count: int, prompt: bool) -> None:
        """Raise DataError where a turn of another than the assistant is not in the text."""
        if not locate(facts_of(turn), text, 0, len(text)).missing:
            elsewhere = turn.role == "tool" or self._is_said_elsewhere(index, count)
            if not elsewhere or self._without(index, count, prompt) != text:
                return  # what a tool answers is often a number, which stands in the names of tools too
        elif turn.role == "tool" and self._without(index, count, prompt) != text:
            return  # templates take what a tool answers apart, if it is JSON
        raise left_out(self.sample, f"turn {index + 1}, of role {turn.role}", "Choose one that has that role")

    def _is_said_elsewhere(self, index: int, count: int) -> bool:
        """Whether what a turn says stands in another of `count` turns too, so that to find it proves nothing."""
        if index not in self._repeats:
            said = self.sample.messages[index].content.strip()
            others = (i for i, turn in enumerate(self.sample.messages) if i != index and said in turn.content)
            self._repeats[index] = next(others, len(self.sample.messages))
        return self._repeats[index] < count

    def _without(self, index: int, count: int, prompt: bool) -> str:
        """The text without a turn; another one where the template refuses that."""
        turns = self.sample.messages[:count]
        try:
            rest = [*turns[:index], *turns[index + 1 :]]
            return apply(self.tokenizer, rest, self.traits.form, self.sample.tools, prompt=prompt)
        except Exception:  # as in `text`
            return ""

    def _no_prompt(self, index: int) -> DataError:
        """Why answer `index` cannot be trained with this template."""
        upto, prompt = self.text(index + 1), self._prompt(index)
        missing = self._said(index, upto, len(prompt) if upto.startswith(prompt) else 0).missing
        if missing:
            return lost(self.sample, index, missing[0])
        if not upto.startswith(prompt):
            return other_prompt(self.sample, index, upto, prompt, template_for(self.tokenizer, self.sample))
        return no_end(self.sample, index)
