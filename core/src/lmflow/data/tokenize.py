"""Samples as token sequences, with the loss on the assistant's tokens and the end-of-text token after them.

Token ids are those of the model's own chat template; which of them are targets is what `lmflow.data.rendering` found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from lmflow.data.rendering import Rendering, answer_starts, render, renderings
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.errors import DataError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% else %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""Chat template given to a tokenizer that has none. It is saved with the model, so what is trained is served."""

TOGETHER = 256
"""Samples tokenised in one call, while the next ones are rendered."""


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the plain one; returns whether it did."""
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def encode_sample(
    tokenizer: Any, sample: Sample, *, train_on: str = "assistant", end_ids: Sequence[int]
) -> list[TokenSequence]:
    """Tokenise one sample; see `encode_samples`."""
    return encode_samples(tokenizer, [sample], train_on=train_on, end_ids=end_ids)[0]


def encode_samples(
    tokenizer: Any, samples: Sequence[Sample], *, train_on: str = "assistant", end_ids: Sequence[int]
) -> list[list[TokenSequence]]:
    """Tokenise samples together; for each usually one sequence, several when the template rewrites earlier turns.

    With `train_on` "assistant" the targets are the assistant's tokens up to and including the token that ends each
    answer; with "last" those of the last answer alone; with "all" every token. `end_ids[0]` is appended, as a target,
    where nothing else ends the last answer.
    Raises DataError when the template cannot render the messages or hides where answers begin.
    """
    found, tokenized = _rendered_and_tokenized(tokenizer, samples)
    encoded = []
    for sample, some in zip(samples, found, strict=True):
        if sample.templated:
            chosen = [(each, next(tokenized)) for each in some]
            chosen = chosen[-1:] if train_on == "last" else chosen
            sequences = [_targets(tokenizer, each, tokens, train_on, end_ids) for each, tokens in chosen]
        else:
            sequences = [_encode_plain(tokenizer, sample, train_on, end_ids)]
        if train_on == "all":
            sequences = [replace(each, loss_mask=[True] * len(each)) for each in sequences]
        encoded.append(sequences)
    return encoded


def encode_prompt(tokenizer: Any, sample: Sample) -> list[int]:
    """Token ids of what precedes the sample's last answer: a prefix of the ids `encode_sample` gives."""
    prompt = sample.prompt()
    if not prompt.templated:
        return [token for index, turn in enumerate(prompt.messages) for token in _plain_ids(tokenizer, turn, index)]
    text = render(tokenizer, prompt, prompt.messages, prompt=True)
    if not any(turn.role == "assistant" for turn in prompt.messages):
        return _ids(tokenizer, text)
    starts = answer_starts(tokenizer, prompt, text)
    tokens = _whole(text, _encodings(tokenizer, [text])[0])
    return _uncrossed(tokenizer, text, tokens, starts).ids


@dataclass(frozen=True, slots=True)
class _Part:
    """Text tokenised as one: where it begins and ends, in characters, its first token, and its encoding."""

    begin: int
    end: int
    first: int
    encoding: Any


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a text, tokenised whole or in parts.

    Places are looked up in the encodings, because to list the characters of every token takes longer than all else
    that Python does here.
    """

    ids: list[int]
    parts: Sequence[_Part]

    def first_from(self, place: int) -> int:
        """The first token that begins at the character `place` or after it."""
        part = self._part(place)
        found = _covering(part, place)
        if found is None:
            return part.first + len(part.encoding)
        begins = part.encoding.token_to_chars
        while found < len(part.encoding) and begins(found)[0] < place - part.begin:
            found += 1
        while found > 0 and begins(found - 1)[0] >= place - part.begin:
            found -= 1
        return part.first + found

    def straddled(self, place: int) -> bool:
        """Whether a token begins before the character `place` and ends after it."""
        part = self._part(place)
        found = part.encoding.char_to_token(place - part.begin) if place > part.begin else None
        return found is not None and part.encoding.token_to_chars(found)[0] < place - part.begin

    def _part(self, place: int) -> _Part:
        return next((part for part in self.parts if place < part.end), self.parts[-1])


def _covering(part: _Part, place: int) -> int | None:
    """The first token of the part for the character `place`, or for the next that has one; None if there is none."""
    for character in range(place - part.begin, part.end - part.begin):
        found: int | None = part.encoding.char_to_token(character)
        if found is not None:
            return found
    return None


def _rendered_and_tokenized(
    tokenizer: Any, samples: Sequence[Sample]
) -> tuple[list[list[Rendering]], Iterator[_Tokens]]:
    """The renderings of each sample, and the tokens of all of them in that order.

    Rendering is Python, tokenising is not: a second thread tokenises some samples while the next ones are rendered.
    """
    found: list[list[Rendering]] = []
    jobs = []
    with ThreadPoolExecutor(1) as other:
        for start in range(0, len(samples), TOGETHER):
            some = samples[start : start + TOGETHER]
            found += [renderings(tokenizer, sample) if sample.templated else [] for sample in some]
            texts = [each for few in found[start:] for each in few]
            jobs.append(other.submit(_tokenized, tokenizer, texts))
    return found, chain.from_iterable(job.result() for job in jobs)


def _tokenized(tokenizer: Any, texts: Sequence[Rendering]) -> list[_Tokens]:
    """The tokens of all renderings.

    Each text is tokenised whole, as the template's own ids are, unless a token would straddle a place where an answer
    starts: there the text is cut, because a prompt ends there too when the model is asked.
    """
    if not texts:
        return []
    encodings = _encodings(tokenizer, [each.text for each in texts])
    return [
        _uncrossed(tokenizer, each.text, _whole(each.text, encoding), [start for start, _ in each.spans])
        for each, encoding in zip(texts, encodings, strict=True)
    ]


def _encodings(tokenizer: Any, texts: Sequence[str]) -> Sequence[Any]:
    """What the library tokenizers makes of the texts, all in one call, which uses every core.

    It is asked directly: on the way through Transformers, lists of everything it knows are made one after the other.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError("The tokenizer reports no character offsets; convert it to a fast tokenizer.")
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    found: Sequence[Any] = backend.encode_batch(list(texts), add_special_tokens=False)
    return found


def _whole(text: str, encoding: Any) -> _Tokens:
    return _Tokens(encoding.ids, [_Part(0, len(text), 0, encoding)])


def _uncrossed(tokenizer: Any, text: str, tokens: _Tokens, places: Sequence[int]) -> _Tokens:
    """The tokens, none of which straddles one of `places`."""
    cuts = [place for place in places if tokens.straddled(place)]
    if not cuts:
        return tokens
    ids: list[int] = []
    parts: list[_Part] = []
    borders = list(pairwise([0, *cuts, len(text)]))
    encodings = _encodings(tokenizer, [text[begin:end] for begin, end in borders])
    for (begin, end), encoding in zip(borders, encodings, strict=True):
        parts.append(_Part(begin, end, len(ids), encoding))
        ids += encoding.ids
    return _Tokens(ids, parts)


def _targets(
    tokenizer: Any, rendering: Rendering, tokens: _Tokens, train_on: str, end_ids: Sequence[int]
) -> TokenSequence:
    """The tokens inside a span are targets; found spans end with the token that ends the answer, not after it."""
    loss_mask = [False] * len(tokens.ids)
    chosen = range(len(rendering.spans))[-1:] if train_on == "last" else range(len(rendering.spans))
    for number in chosen:
        start, end = rendering.spans[number]
        first, last = tokens.first_from(start), tokens.first_from(end)
        if not rendering.marked:
            said = rendering.answers[number].strip()
            found = rendering.text.find(said, start, end)
            after = tokens.first_from(found + len(said)) if found >= 0 else None
            last = _end_of_answer(tokens.ids, first, last, after, {*tokenizer.all_special_ids, *end_ids})
        elif first < last < len(loss_mask) and tokens.ids[last - 1] not in end_ids and tokens.ids[last] in end_ids:
            last += 1  # marks around what is said alone: the model must learn to stop after earlier answers too
        loss_mask[first:last] = [True] * (last - first)
    return _ended(rendering.sample, tokens.ids, loss_mask, end_ids)


def _end_of_answer(ids: Sequence[int], first: int, last: int, after: int | None, special: set[int]) -> int:
    """Where a found span ends: behind the first special token after what is said; the last, if that is unknown."""
    places = range(last - 1, first - 1, -1) if after is None else range(after, last)
    return next((index for index in places if ids[index] in special), last - 1) + 1


def _ended(sample: Sample, ids: list[int], loss_mask: list[bool], end_ids: Sequence[int]) -> TokenSequence:
    """Make sure that the last answer ends with a token the model can learn to stop at."""
    if sample.messages[-1].role == "assistant":
        last = next((i for i in range(len(loss_mask) - 1, -1, -1) if loss_mask[i]), None)
        if last is not None and ids[last] not in end_ids and not set(ids[last + 1 :]) & set(end_ids):
            ids, loss_mask = [*ids[: last + 1], end_ids[0]], [*loss_mask[: last + 1], True]
        elif last is not None and ids[last] not in end_ids:
            stop = next(i for i in range(last + 1, len(ids)) if ids[i] in end_ids)
            loss_mask = [is_trained or last < i <= stop for i, is_trained in enumerate(loss_mask)]
    return TokenSequence(ids, loss_mask, sample.source)


def _encode_plain(tokenizer: Any, sample: Sample, train_on: str, end_ids: Sequence[int]) -> TokenSequence:
    """Contents one after the other; the last one's end is marked if it is the assistant's."""
    ids: list[int] = []
    loss_mask: list[bool] = []
    final = len(sample.messages) - 1
    for index, turn in enumerate(sample.messages):
        piece = _plain_ids(tokenizer, turn, index)
        ids += piece
        loss_mask += [turn.role == "assistant" and (train_on != "last" or index == final)] * len(piece)
    if sample.messages[-1].role == "assistant":
        ids.append(end_ids[0])
        loss_mask.append(True)
    return TokenSequence(ids, loss_mask, sample.source)


def _plain_ids(tokenizer: Any, turn: Message, index: int) -> list[int]:
    """Ids of a content; the tokenizer's own special tokens only at the very beginning, and never an end token."""
    if index > 0:
        return _ids(tokenizer, turn.content)
    ids: list[int] = list(tokenizer(turn.content, add_special_tokens=True)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and ids != _ids(tokenizer, turn.content):
        ids.pop()
    return ids


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
