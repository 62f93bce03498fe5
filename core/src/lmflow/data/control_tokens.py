"""Special tokens of a model that stand in what somebody says: found, and tokenised as the text that they are there.

A chat template writes special tokens around what is said, such as `<|im_end|>` behind it. Where a content holds the
same characters, the tokenizer makes the same token of them, and the model would see a turn end in the middle of it.
Contents are rendered with placeholders as long as the tokens they stand for, so that the text shows afterwards which
special tokens are the template's own, whatever the template did with the contents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from lmflow.data.per_tokenizer import KEPT, PerTokenizer
from lmflow.data.sample import Message, Sample

Span = tuple[int, int]
PLACEHOLDERS = 0x100000
"""The first of 65,534 characters that Unicode leaves to private use: the tokens are numbered from here."""
RUN = re.compile(r"([\U00100000-\U0010fffd])\1*")
THOUGHT_MARKS = frozenset({"<think>", "</think>"})
"""What an assistant's thoughts stand between in records: templates look for them, special or not."""
IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class EncodedPart:
    """A part of a text, from character `begin` to `end`, and its encoding by the library tokenizers."""

    begin: int
    end: int
    encoding: Any


class ControlTokens:
    """The special tokens of a tokenizer, as somebody may write them; `control_tokens_of` gives them."""

    def __init__(self, tokenizer: Any) -> None:
        self._original = getattr(tokenizer, "backend_tokenizer", None)
        self._splits: bool = tokenizer.split_special_tokens
        self.are_kept = special_tokens_are_kept(tokenizer)
        """Whether special tokens in contents are meant for what they are, and encoded so."""
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        known = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        found = {**special, **known}
        self.ids: frozenset[int] = frozenset(found.values())
        """The ids of all special tokens."""
        names = sorted((name for name in found if name.strip()), key=lambda name: (-len(name), name))
        self._names: dict[str, str] = {chr(PLACEHOLDERS + number): name for number, name in enumerate(names)}
        self._placeholders = {name: place for place, name in self._names.items()}
        pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._search, self._places = pattern.search, pattern.finditer

    # What stands in samples

    def stand_in(self, sample: Sample) -> bool:
        """Whether anything that the sample says, offers or calls contains a special token that is to be text."""
        if self.are_kept:
            return False
        return any(self._in_turn(turn, sample) for turn in sample.messages) or self._stand_in_data(sample.tools)

    def places_in(self, sample: Sample) -> Iterator[str]:
        """Turn, token and character of the first special token in each content and thought; calls and tools by name."""
        for number, turn in enumerate(sample.messages, 1):
            for what, text in (("", turn.content), (", thinking", turn.thinking or "")):
                first = next(self._spans(text, self._meant(turn, sample)), None) if self._search(text) else None
                if first is not None:
                    token = text[first[0] : first[1]]
                    yield f"turn {number} ({turn.role}{what}) contains {token!r} at character {first[0] + 1}"
            if turn.tool_calls and self._stand_in_data(turn.tool_calls):
                yield f"turn {number} ({turn.role}) contains a special token in a call"
        if sample.tools and self._stand_in_data(sample.tools):
            yield "the description of a tool contains a special token"

    # Rendering with placeholders

    def hidden(self, sample: Sample) -> Sample:
        """The sample with a placeholder, as long as the token, for each special token in what it says."""
        messages = tuple(self._hidden_turn(turn, self._meant(turn, sample)) for turn in sample.messages)
        return replace(sample, messages=messages, tools=_mapped(sample.tools, self._hide))

    def shown(self, text: str) -> tuple[str, list[Span]]:
        """The text with the tokens in place of their placeholders, and where they are; no other character moves."""
        spans: list[Span] = []

        def restored(run: re.Match[str]) -> str:
            place, whole = run[1], run[0]
            name = self._names.get(place)
            if name is None:
                return whole
            count, width = len(whole) // len(name), len(name)
            starts = range(run.start(), run.start() + count * width, width)
            spans.extend((start, start + width) for start in starts)
            return name * count + whole[count * width :]

        return RUN.sub(restored, text), spans

    # Tokenising

    def encode(self, text: str, spans: Sequence[Span]) -> list[EncodedPart]:
        """The tokens of a text in which special tokens that overlap one of `spans` are characters like others.

        The parts follow one another and are the whole text. It is cut only at special tokens that are none of those,
        where tokenizers cut texts themselves: with the others it gives the ids that the tokenizer would give if it knew
        no token of the name.
        """
        whole = self._backend.encode(text, add_special_tokens=False)
        borders = list(_borders(whole, self.ids, spans))
        parts, done = [], 0
        for begin, end in _stretches(borders, len(text), spans):
            if done < begin:
                parts.append(EncodedPart(done, begin, self._backend.encode(text[done:begin], add_special_tokens=False)))
            parts.append(
                EncodedPart(begin, end, self._as_text(begin).encode(text[begin:end], add_special_tokens=False))
            )
            done = end
        if done < len(text):
            parts.append(EncodedPart(done, len(text), self._backend.encode(text[done:], add_special_tokens=False)))
        return parts

    def ids_as_text(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The ids of a content by itself, each special token in it as text; with those that begin a text, if asked."""
        found: list[int] = self._as_text(0).encode(text, add_special_tokens=add_special_tokens).ids
        return found

    @cached_property
    def _backend(self) -> Any:
        """A copy of the tokenizer, so that no other thread has its settings changed."""
        made = _copied(self._original, lambda made: made)
        made.encode_special_tokens = self._splits  # which the copy does not have from the original
        return made

    @cached_property
    def _first(self) -> Any:
        return _without_specials(_copied(self._original, lambda made: made))

    @cached_property
    def _later(self) -> Any:
        """Like `_first`, for what follows other text: some tokenizers put a space before the first word alone."""
        return _without_specials(_copied(self._original, _without_first_space))

    def _as_text(self, begin: int) -> Any:
        return self._later if begin else self._first

    def _in_turn(self, turn: Message, sample: Sample) -> bool:
        meant = self._meant(turn, sample)
        texts = [text for text in (turn.content, turn.thinking) if text and self._search(text)]
        return any(next(self._spans(text, meant), None) for text in texts) or self._stand_in_data(turn.tool_calls)

    def _meant(self, turn: Message, sample: Sample) -> frozenset[str]:
        """Names that stand in the turn for what they mean: an image, or a thought's beginning and end."""
        marks = THOUGHT_MARKS if turn.role == "assistant" else frozenset()
        return marks | {IMAGE_MARK} if sample.images else marks

    def _spans(self, text: str, meant: frozenset[str]) -> Iterator[Span]:
        return (found.span() for found in self._places(text) if found.group() not in meant)

    def _stand_in_data(self, value: Any) -> bool:
        found: list[str] = []

        def look(text: str) -> str:
            found.extend([text] if self._search(text) else [])
            return text

        _mapped(value, look)
        return bool(found)

    def _hidden_turn(self, turn: Message, meant: frozenset[str]) -> Message:
        return replace(
            turn,
            content=self._hide(turn.content, meant),
            thinking=turn.thinking and self._hide(turn.thinking, meant),
            tool_calls=_mapped(turn.tool_calls, self._hide),
        )

    def _hide(self, text: str, meant: frozenset[str] = frozenset()) -> str:
        if not self._search(text):
            return text
        parts, done = [], 0
        for begin, end in self._spans(text, meant):
            parts += [text[done:begin], self._placeholders[text[begin:end]] * (end - begin)]
            done = end
        return "".join([*parts, text[done:]])


def special_tokens_are_kept(tokenizer: Any) -> bool:
    """Whether special tokens in contents are encoded as such."""
    return bool(tokenizer.init_kwargs.get(KEPT) == "keep")


def use_special_tokens(tokenizer: Any, treatment: Literal["text", "keep"] | None) -> None:
    """Have special tokens in contents encoded as text, or kept; None leaves it as it is.

    It is saved with the tokenizer: a model is asked as it was trained.
    """
    if treatment is not None:
        tokenizer.init_kwargs[KEPT] = treatment


control_tokens_of = PerTokenizer(ControlTokens)
"""The special tokens of a tokenizer."""


def _borders(encoding: Any, special: frozenset[int], spans: Sequence[Span]) -> Iterator[Span]:
    """Where the special tokens are that overlap none of `spans`: those of the template."""
    for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        if token in special and begin < end and not any(begin < last and first < end for first, last in spans):
            yield begin, end


def _stretches(borders: Sequence[Span], length: int, spans: Sequence[Span]) -> Iterator[Span]:
    """What lies between two borders, or a border and an end of the text, and has one of `spans` in it."""
    starts = [0, *(end for _, end in borders)]
    ends = [*(begin for begin, _ in borders), length]
    for begin, end in zip(starts, ends, strict=True):
        if any(begin <= first and last <= end for first, last in spans):
            yield begin, end


def _copied(backend: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(change(json.loads(backend.to_str()))))
    made.no_truncation()
    made.no_padding()
    return made


def _without_specials(tokenizer: Any) -> Any:
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_first_space(described: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's description with every `"prepend_scheme": "first"` as never."""

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                key: "never" if key == "prepend_scheme" and each == "first" else changed(each)
                for key, each in value.items()
            }
        return [changed(each) for each in value] if isinstance(value, list) else value

    return {**described, "pre_tokenizer": changed(described["pre_tokenizer"])}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data with each text in it changed; the keys of mappings stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(each, change) for each in value)
    return value
