"""Samples as token sequences, with the loss on the assistant's tokens and the end-of-text token after them.

Token ids are always exactly those of the model's own chat template. Which of them are targets follows from the
template's `{% generation %}` marks, or from rendering the conversation with and without its later turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.errors import DataError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '### Assistant:\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% else %}{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""Chat template given to a tokenizer that has none. It is saved with the model, so what is trained is served."""

Span = tuple[int, int]


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the plain one; returns whether it did."""
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def encode_sample(
    tokenizer: Any, sample: Sample, *, train_on: str = "assistant", end_ids: Sequence[int]
) -> list[TokenSequence]:
    """Tokenise one sample; usually one sequence, several when the template rewrites earlier turns.

    With `train_on` "assistant" the targets are the assistant's tokens up to and including the token that ends each
    answer; with "all" every token. `end_ids[0]` is appended, as a target, where nothing else ends the last answer.
    Raises DataError when the template cannot render the messages or hides where answers begin.
    """
    if sample.templated:
        sequences = _encode_templated(tokenizer, sample, end_ids)
    else:
        sequences = [_encode_plain(tokenizer, sample, end_ids)]
    if train_on == "all":
        return [TokenSequence(s.ids, [True] * len(s), s.source, s.extras) for s in sequences]
    return sequences


def encode_prompt(tokenizer: Any, sample: Sample) -> list[int]:
    """Token ids of what precedes the sample's last answer: a prefix of the ids `encode_sample` gives."""
    prompt = sample.prompt()
    if not prompt.templated:
        return [token for index, turn in enumerate(prompt.messages) for token in _plain_ids(tokenizer, turn, index)]
    text = render(tokenizer, prompt, prompt.messages, prompt=True)
    earlier = [index for index, turn in enumerate(prompt.messages) if turn.role == "assistant"]
    if not earlier:
        return _ids(tokenizer, text)
    starts = [len(render(tokenizer, prompt, prompt.messages[:index], prompt=True)) for index in earlier]
    return _tokens_with_offsets(tokenizer, text, starts)[0]


def render(tokenizer: Any, sample: Sample, messages: Sequence[Message], *, prompt: bool = False) -> str:
    """The chat template's text for `messages`; with `prompt`, up to where the assistant begins to speak.

    Raises DataError naming the sample when the template refuses the messages.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program of the model's maker: it can raise anything
        roles = ", ".join(turn.role for turn in messages)
        raise DataError(f"{sample.source}: the model's chat template refuses the roles {roles}: {error}") from error
    return text


def _encode_templated(tokenizer: Any, sample: Sample, end_ids: Sequence[int]) -> list[TokenSequence]:
    full = render(tokenizer, sample, sample.messages)
    answers = [index for index, turn in enumerate(sample.messages) if turn.role == "assistant"]
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        return [_from_generation_marks(tokenizer, sample, end_ids)]
    spans = [_answer_span(tokenizer, sample, index, full) for index in answers]
    known = [span for span in spans if span is not None]
    if len(known) == len(answers):
        return [_from_spans(tokenizer, sample, full, known, end_ids)]
    return [_last_answer_of(tokenizer, sample, index, end_ids) for index in answers]


def _from_generation_marks(tokenizer: Any, sample: Sample, end_ids: Sequence[int]) -> TokenSequence:
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages]
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    trained = [bool(mark) for mark in encoded["assistant_masks"]]
    return _ended(sample, list(encoded["input_ids"]), trained, end_ids)


def _answer_span(tokenizer: Any, sample: Sample, index: int, full: str) -> Span | None:
    """Characters of `full` that answer `index` and its end take up; None if the template rewrote it later on."""
    before = render(tokenizer, sample, sample.messages[:index], prompt=True)
    after = render(tokenizer, sample, sample.messages[: index + 1])
    return (len(before), len(after)) if full.startswith(after) and after.startswith(before) else None


def _last_answer_of(tokenizer: Any, sample: Sample, index: int, end_ids: Sequence[int]) -> TokenSequence:
    """The conversation up to answer `index`, trained on that answer alone: what the model sees when it gives it."""
    upto = Sample(sample.messages[: index + 1], True, sample.record, sample.source)
    text = render(tokenizer, upto, upto.messages)
    span = _answer_span(tokenizer, upto, index, text)
    if span is None:
        raise DataError(
            f"{sample.source}: the model's chat template shows no clear place where answer {index + 1} begins. Mark it "
            "with {% generation %} in the template, or use a format without a template (text2text)."
        )
    return _from_spans(tokenizer, upto, text, [span], end_ids)


def _from_spans(
    tokenizer: Any, sample: Sample, text: str, spans: Sequence[Span], end_ids: Sequence[int]
) -> TokenSequence:
    """Tokens inside a span are targets, but for what the template puts after the token that ends the answer."""
    ids, offsets = _tokens_with_offsets(tokenizer, text, [start for start, _ in spans])
    special = {*tokenizer.all_special_ids, *end_ids}
    trained = [False] * len(ids)
    for start, end in spans:
        inside = [i for i, (a, b) in enumerate(offsets) if start <= a and b <= end and a < b]
        enders = [i for i in inside if ids[i] in special]
        last = enders[-1] if enders else max(inside, default=-1)
        for i in inside:
            trained[i] = i <= last
    return _ended(sample, ids, trained, end_ids)


def _tokens_with_offsets(tokenizer: Any, text: str, starts: Sequence[int]) -> tuple[list[int], list[Span]]:
    """Ids and character spans of `text`.

    The text is tokenised whole, as the template's own ids are, unless a token would straddle a place where an answer
    starts: there the text is cut, because a prompt ends there too when the model is asked.
    """
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(a, b) for a, b in encoded["offset_mapping"]]
        cuts = [start for start in starts if any(a < start < b for a, b in offsets)]
        if not cuts:
            return list(encoded["input_ids"]), offsets
        ids, offsets = [], []
        for begin, end in zip([0, *cuts], [*cuts, len(text)]):
            piece = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += piece["input_ids"]
            offsets += [(a + begin, b + begin) for a, b in piece["offset_mapping"]]
    except NotImplementedError as error:
        raise DataError("The tokenizer reports no character offsets; convert it to a fast tokenizer.") from error
    return ids, offsets


def _ended(sample: Sample, ids: list[int], trained: list[bool], end_ids: Sequence[int]) -> TokenSequence:
    """Make sure that the last answer ends with a token the model can learn to stop at."""
    if sample.messages[-1].role == "assistant":
        last = max((i for i, is_trained in enumerate(trained) if is_trained), default=None)
        if last is not None and ids[last] not in end_ids and not set(ids[last + 1 :]) & set(end_ids):
            ids, trained = [*ids[: last + 1], end_ids[0]], [*trained[: last + 1], True]
        elif last is not None and ids[last] not in end_ids:
            stop = next(i for i in range(last + 1, len(ids)) if ids[i] in end_ids)
            trained = [is_trained or last < i <= stop for i, is_trained in enumerate(trained)]
    return TokenSequence(ids, trained, sample.source)


def _encode_plain(tokenizer: Any, sample: Sample, end_ids: Sequence[int]) -> TokenSequence:
    """Contents one after the other; the last one's end is marked if it is the assistant's."""
    ids: list[int] = []
    trained: list[bool] = []
    for index, turn in enumerate(sample.messages):
        piece = _plain_ids(tokenizer, turn, index)
        ids += piece
        trained += [turn.role == "assistant"] * len(piece)
    if sample.messages[-1].role == "assistant":
        ids.append(end_ids[0])
        trained.append(True)
    return TokenSequence(ids, trained, sample.source)


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
