"""Samples as token sequences, with the loss on the assistant's tokens and the end-of-text token after them.

Token ids are those of the model's own chat template; which of them are targets is what `lmflow.data.rendering` found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from lmflow.data.chat_templates import use_template
from lmflow.data.control_tokens import ControlTokens, control_tokens_of, use_special_tokens
from lmflow.data.rendering import RenderedAnswer, Rendering, Span, render, renderings
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% else %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""Chat template given to a tokenizer that has none. It is saved with the model, so what is trained is served."""

TOGETHER = 256
"""Samples tokenised in one call, while the next ones are rendered."""


def prepare_tokenizer(tokenizer: Any, options: DataOptions) -> None:
    """Set the tokenizer to the template that the options name, and to what they make of special tokens in contents."""
    use_template(tokenizer, options.template, options.template_arguments)
    use_special_tokens(tokenizer, options.special_tokens)


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
    """Tokenise samples together; for each usually one sequence, several where one text cannot hold all its answers.

    With `train_on` "assistant" the targets are the assistant's tokens up to and including the token that ends each
    answer; with "last" those of the last answer alone; with "all" every token but those of turns that are not to be
    learnt. Where nothing ends the last answer the template's own end is appended, as a target, or else `end_ids[0]`.
    Each sequence begins with the ids of `encode_prompt` for its last answer. Raises DataError as
    `lmflow.data.rendering.renderings` does.
    """
    found, tokenized = _rendered_and_tokenized(tokenizer, samples)
    encoded = []
    for sample, some in zip(samples, found, strict=True):
        if not sample.templated:
            encoded.append([_encode_plain(tokenizer, sample, train_on, end_ids)])
            continue
        parts = [part for _ in some for part in next(tokenized)]
        parts = parts[-1:] if train_on == "last" else parts
        encoded.append([_targets(tokenizer, each, tokens, train_on, end_ids) for each, tokens in parts])
    return encoded


def encode_prompt(tokenizer: Any, sample: Sample) -> list[int]:
    """Token ids of what precedes the sample's last answer: the template's own, which begin those that are trained."""
    prompt = sample.prompt()
    if not prompt.templated:
        return [token for index, turn in enumerate(prompt.messages) for token in _plain_ids(tokenizer, turn, index)]
    control = control_tokens_of(tokenizer)
    if not control.stand_in(prompt):
        return _ids(tokenizer, render(tokenizer, prompt, prompt.messages, prompt=True))
    with _said_plainly(control):
        hidden = control.hidden(prompt)
        text, literal = control.shown(render(tokenizer, hidden, hidden.messages, prompt=True))
    return _literally(control, text, literal).ids


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


def _renderings(tokenizer: Any, sample: Sample, *, apart: bool = False) -> list[Rendering]:
    """The sample's renderings, with special tokens that somebody says known for what they are."""
    if not sample.templated:
        return []
    control = control_tokens_of(tokenizer)
    if not control.stand_in(sample):
        return renderings(tokenizer, sample, apart=apart)
    with _said_plainly(control):
        found = renderings(tokenizer, control.hidden(sample), apart=apart)
    shown = ((each, *control.shown(each.text)) for each in found)
    return [replace(each, sample=sample, text=text, literal=tuple(literal)) for each, text, literal in shown]


@contextmanager
def _said_plainly(control: ControlTokens) -> Iterator[None]:
    """Within the context errors speak of special tokens, not of what stands for them."""
    try:
        yield
    except DataError as error:
        raise DataError(control.shown(str(error))[0]) from error


Parts = list[tuple[Rendering, _Tokens]]
"""A rendering, or the several that it has to be divided into, with their tokens."""


def _rendered_and_tokenized(tokenizer: Any, samples: Sequence[Sample]) -> tuple[list[list[Rendering]], Iterator[Parts]]:
    """The renderings of each sample, and the tokens of all of them in that order.

    Rendering is Python, tokenising is not: a second thread tokenises some samples while the next ones are rendered.
    """
    found: list[list[Rendering]] = []
    jobs = []
    with ThreadPoolExecutor(1) as other:
        for start in range(0, len(samples), TOGETHER):
            some = samples[start : start + TOGETHER]
            found += [_renderings(tokenizer, sample) for sample in some]
            texts = [each for few in found[start:] for each in few]
            jobs.append(other.submit(_tokenized, tokenizer, texts))
    return found, chain.from_iterable(job.result() for job in jobs)


def _tokenized(tokenizer: Any, texts: Sequence[Rendering]) -> list[Parts]:
    """The tokens of all renderings, each tokenised whole, as the template's own ids are.

    A prompt ends where an answer starts. Where a token would straddle that place, the text is cut there if it is the
    last answer's; each of several answers then has a text of its own, so that all earlier ones are the template's.
    """
    plain = [each.text for each in texts if not each.literal]
    encodings = iter(_encodings(tokenizer, plain) if plain else ())
    control = control_tokens_of(tokenizer)
    tokens = [
        _literally(control, each.text, each.literal) if each.literal else _whole(each.text, next(encodings))
        for each in texts
    ]
    return [_divided(tokenizer, each, made) for each, made in zip(texts, tokens, strict=True)]


def _divided(tokenizer: Any, rendering: Rendering, tokens: _Tokens) -> Parts:
    starts = [answer.start for answer in rendering.answers]
    if any(map(tokens.straddled, starts[:-1])):
        turns = {answer.turn for answer in rendering.answers}
        alone = [each for each in _renderings(tokenizer, rendering.sample, apart=True) if each.answers[0].turn in turns]
        return [part for each in alone for [part] in _tokenized(tokenizer, [each])]
    if any(map(tokens.straddled, starts[-1:])):
        tokens = _cut(tokenizer, rendering, starts[-1])
    return [(rendering, tokens)]


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


def _literally(control: ControlTokens, text: str, literal: Sequence[Span]) -> _Tokens:
    """The tokens of a text, with special tokens at the places `literal` as text."""
    ids: list[int] = []
    parts: list[_Part] = []
    for each in control.encode(text, literal):
        parts.append(_Part(each.begin, each.end, len(ids), each.encoding))
        ids += each.encoding.ids
    return _Tokens(ids, parts)


def _cut(tokenizer: Any, rendering: Rendering, place: int) -> _Tokens:
    """The tokens of what is before a place, and of what is after it."""
    control, text = control_tokens_of(tokenizer), rendering.text
    after = [(start - place, end - place) for start, end in rendering.literal if start >= place]
    before = _literally(control, text[:place], [(start, end) for start, end in rendering.literal if end <= place])
    rest = _literally(control, text[place:], after)
    moved = [
        _Part(part.begin + place, part.end + place, part.first + len(before.ids), part.encoding) for part in rest.parts
    ]
    return _Tokens([*before.ids, *rest.ids], [*before.parts, *moved])


def _targets(
    tokenizer: Any, rendering: Rendering, tokens: _Tokens, train_on: str, end_ids: Sequence[int]
) -> TokenSequence:
    """The tokens that are trained, and an end behind the last answer if nothing ends it."""
    answers = [each for each in rendering.answers if train_on != "last" or is_last(rendering.sample, each.turn)]
    loss_mask = [False] * len(tokens.ids)
    for answer in answers:
        for start, end in answer.spans:
            # A mark may begin inside a token; what the prompt ends inside was cut there.
            first = tokens.first_from(start) - (start > answer.start and tokens.straddled(start))
            last = tokens.first_from(end)
            loss_mask[first:last] = [True] * (last - first)
    if train_on == "all":
        loss_mask = [True] * len(tokens.ids)
        for start, end in rendering.unlearnt:
            first, last = tokens.first_from(start), tokens.first_from(end)
            loss_mask[first:last] = [False] * (last - first)
    ids = tokens.ids
    if answers and answers[-1].spans and not answers[-1].ended:
        ids, loss_mask = _with_end(tokenizer, answers[-1], ids, loss_mask, end_ids)
    return TokenSequence(ids, loss_mask, rendering.sample.source)


def _with_end(
    tokenizer: Any, answer: RenderedAnswer, ids: list[int], loss_mask: list[bool], end_ids: Sequence[int]
) -> tuple[list[int], list[bool]]:
    """The tokens up to the last one trained, and the end; what comes after an answer that ends nowhere stays out."""
    known = None if answer.missing_end is None else tokenizer.convert_tokens_to_ids(answer.missing_end)
    last = next((index for index in reversed(range(len(ids))) if loss_mask[index]), len(ids) - 1) + 1
    return [*ids[:last], end_ids[0] if known is None else known], [*loss_mask[:last], True]


def is_last(sample: Sample, turn: int) -> bool:
    """Whether no answer of the sample comes after that turn, one that is not to be learnt included."""
    return all(each.role != "assistant" for each in sample.messages[turn + 1 :])


def _encode_plain(tokenizer: Any, sample: Sample, train_on: str, end_ids: Sequence[int]) -> TokenSequence:
    """Contents one after the other; the last one's end is marked if it is the assistant's, and learnt like it."""
    ids: list[int] = []
    loss_mask: list[bool] = []
    learnt = False
    for index, turn in enumerate(sample.messages):
        piece = _plain_ids(tokenizer, turn, index)
        is_answer = turn.role == "assistant" and (train_on != "last" or is_last(sample, index))
        learnt = turn.is_target and (is_answer or train_on == "all")
        ids += piece
        loss_mask += [learnt] * len(piece)
    if sample.messages[-1].role == "assistant":
        ids.append(end_ids[0])
        loss_mask.append(learnt)
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
