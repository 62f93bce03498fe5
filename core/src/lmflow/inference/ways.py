"""Ways to decode from a model, fastest first: which one is right is found by a few forward passes before the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.comparing import (
    EQUAL_FLOOR,
    EQUAL_NOISE,
    FLOOR,
    NOISE,
    distance,
    judgeable,
    looks_ahead,
    not_causal,
    type_of,
)
from lmflow.inference.decoder import Decoder, RowDecoder, beneath_adapter, check_decodable, eval_mode
from lmflow.inference.unpadded import GroupedDecoder, UncachedDecoder
from lmflow.models.quantization import computes_in_float32

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

SHORT, LONG, STEPS = 3, 9, 4
"""Tokens of the probe's prompts, and how many follow."""
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError, AssertionError)
"""What a model may raise that cannot be decoded in some way."""


@dataclass(frozen=True)
class Way:
    """A way to decode."""

    name: str
    make: Callable[[nn.Module], RowDecoder]
    note: str
    """What the log says of a model that needs it, after its type; empty for what is usual."""


def _equal_lengths(module: nn.Module) -> RowDecoder:
    return GroupedDecoder(partial(Decoder, module))


def _alone(module: nn.Module) -> RowDecoder:
    return GroupedDecoder(partial(Decoder, module), alone=True)


def _uncached_alone(module: nn.Module) -> RowDecoder:
    return GroupedDecoder(partial(UncachedDecoder, module), alone=True)


USUAL = Way("padded", Decoder, "")
WAYS = (
    USUAL,
    Way("padded prompts", partial(Decoder, masks_steps=False), "prompts are read in padded batches, tokens unmasked"),
    Way("equal lengths", _equal_lengths, "prompts of equal length are decoded together"),
    Way("one at a time", _alone, "rows are decoded one at a time"),
    Way("no cache", UncachedDecoder, "every token is computed from the whole text, which is slow"),
    Way("no cache, one at a time", _uncached_alone, "every token of every row is computed by itself, which is slow"),
)
"""Fastest first; the last is the plain forward pass itself."""

_found: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()


def make_decoder(model: LanguageModel) -> RowDecoder:
    """A decoder for rows of the model, in the way that is right for it."""
    return find_way(model).make(model.module)


def find_way(model: LanguageModel) -> Way:
    """The fastest way to decode that gives what plain forward passes give; asked once for each module.

    Prompts of unequal length, two completions of one prompt, rows that end apart and one that joins are decoded and
    compared. Where the plain passes cannot be judged, since they fail or are not finite, the usual way is taken, and
    says so when it is used. Raises LmflowError for a model in which later tokens change earlier ones.
    """
    check_decodable(model.module)
    module = beneath_adapter(model.module)
    if module not in _found:
        with probing(model.module):
            way = _probe(model)
        if way is None:
            return USUAL
        _found[module] = way
    return _found[module]


@contextmanager
def probing(module: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients."""
    with torch.no_grad(), eval_mode(module):
        yield


def describe_way(model: LanguageModel) -> str:
    """A sentence on how the model is decoded where that is unusual; empty where it is usual."""
    note = find_way(model).note
    kind = type_of(model.module)
    return f"A model of type {kind} is decoded in its own way, as the usual one would be wrong: {note}." if note else ""


@dataclass(frozen=True)
class Truth:
    """What plain forward passes say: the logits after each token of the three rows of the probe."""

    prompts: tuple[Prompt, Prompt]
    followed: Tensor
    """What follows the prompt in each row, (3, STEPS): two rows of the first prompt and one of the second."""
    logits: tuple[Tensor, Tensor, Tensor]
    """(STEPS + 1, V) each, the first after the prompt."""
    limit: float
    """The largest difference between passes of other shapes that is rounding."""
    equal_limit: float
    """The largest difference between passes of the same shapes that is rounding: none but in models of experts."""
    exact: bool
    """Whether everything is computed in float32."""
    other_filler: int
    """A token to stand where there is padding, in place of 0."""

    def difference(self, row: int, step: int, logits: Tensor) -> float:
        """How far logits (V,) are from what is right after `step` tokens of a row."""
        return float(distance(logits, self.logits[row][step]))


def _probe(model: LanguageModel) -> Way | None:
    """The fastest way that is right, None where nothing can be said."""
    ids = probe_ids(model)
    if len(ids) < 2:
        return None
    try:
        truth = _truth(model, ids)
    except FAILURES:
        return None  # using it will say what is wrong
    if truth is None:
        return None
    return next(way for way in WAYS if way is WAYS[-1] or holds(way, model.module, truth))


def probe_ids(model: LanguageModel) -> list[int]:
    """Tokens of plain text, spread over the vocabulary: none that ends a text or stands for another input."""
    tokenizer = model.tokenizer
    embeddings = getattr(beneath_adapter(model.module), "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None) or len(tokenizer.get_vocab())
    special = {*model.suppressed_ids, *model.end_ids, *getattr(tokenizer, "all_special_ids", ())}
    usable = [i for i in range(min(size, len(tokenizer.get_vocab()))) if i not in special]
    count = 2 * (LONG + STEPS)
    return [usable[(7 + i * 2_654_435_761) % len(usable)] for i in range(count)] if usable else []


def _truth(model: LanguageModel, ids: Sequence[int]) -> Truth | None:
    """What is right, None where it is not finite. Raises LmflowError where the model is not causal."""
    module, device = model.module, model.device
    exact = computes_in_float32(module) and not torch.is_autocast_enabled(device.type)
    long, short = list(ids[:LONG]), list(ids[LONG : LONG + SHORT])
    rest = list(ids[LONG + SHORT :])
    followed = torch.tensor([[rest[(row * STEPS + i) % len(rest)] for i in range(STEPS)] for row in range(3)])
    rows = [prompt + followed[row].tolist() for row, prompt in enumerate((long, long, short))]

    def plain(some: Sequence[Sequence[int]]) -> Tensor:
        logits: Tensor = module(input_ids=torch.tensor(some, device=device), use_cache=False).logits
        return logits.float()

    alone = [plain([row])[0] for row in rows]
    if not all(judgeable(logits) for logits in alone):
        return None
    # The same tokens in other shapes, and beside others in the same shapes: what differs is rounding.
    last = rows[2] + rest[: LONG - SHORT]
    together, beside = plain([*rows[:2], last]), plain([rows[0], rows[1][::-1], last[::-1]])
    noise = max(
        _summary(distance(one, other[: len(one)]).tolist(), exact) for one, other in zip(alone, together, strict=True)
    )
    equal_limit = EQUAL_NOISE * float(distance(beside[0], together[0]).max()) + EQUAL_FLOOR
    if looks_ahead(alone[0][: len(long)], alone[1][: len(long)], equal_limit):
        raise LmflowError(not_causal(model.module))
    ends = [logits[-STEPS - 1 :] for logits in alone]
    return Truth(
        (Prompt(long), Prompt(short)),
        followed.to(device),
        (ends[0], ends[1], ends[2]),
        max(NOISE * noise, FLOOR[exact]),
        equal_limit,
        exact,
        rest[0],
    )


def holds(way: Way, module: nn.Module, truth: Truth) -> bool:
    """Whether decoding in this way gives what is right; a way that fails with an error does not."""
    try:
        found = _differences(way, module, truth)
        seen = 0.0 if truth.exact else _padding_seen(way, module, truth)
    except FAILURES:
        return False
    return seen <= truth.equal_limit and all(_summary(each, truth.exact) <= truth.limit for each in found)


def _padding_seen(way: Way, module: nn.Module, truth: Truth) -> float:
    """How far the logits of a padded row depend on which token the padding is.

    In low precision a little of it would pass for rounding, but that is none where shapes are the same.
    """
    decoders = [way.make(module) for _ in range(2)]
    found = [
        decoder.prefill(truth.prompts, filler=filler)[1]
        for decoder, filler in zip(decoders, (0, truth.other_filler), strict=True)
        if isinstance(decoder, Decoder)
    ]
    return float(distance(found[1], found[0])) if found else 0.0


def _summary(differences: Sequence[float], exact: bool) -> float:
    """Of a row's differences the largest, or the median where rounding may choose other experts for a token."""
    ordered = sorted(differences)
    return ordered[-1] if exact else ordered[len(ordered) // 2]


def _differences(way: Way, module: nn.Module, truth: Truth) -> list[list[float]]:
    """For each row of the probe, and one that joins, how far it is from what is right at each of its steps."""
    decoder = way.make(module)
    found: list[list[float]] = [[], [], [], []]

    def note(logits: Tensor, rows: Sequence[int], steps: Sequence[int]) -> None:
        for logit, row, step in zip(logits, rows, steps, strict=True):
            found[row].append(truth.difference(min(row, 2), step, logit))

    def read(rows: Sequence[int], steps: Sequence[int]) -> None:
        tokens = torch.stack([truth.followed[min(row, 2), step - 1] for row, step in zip(rows, steps)])
        note(decoder.step(tokens), rows, steps)

    def keep(indices: Sequence[int]) -> None:
        decoder.keep(torch.tensor(indices, device=truth.followed.device))

    note(decoder.prefill(truth.prompts, [2, 1]), [0, 1, 2], [0, 0, 0])
    read([0, 1, 2], [1, 1, 1])
    keep([1, 2])
    read([1, 2], [2, 2])
    keep([1])
    read([2], [3])
    if decoder.flexible:
        joining = way.make(module)
        note(joining.prefill(truth.prompts[1:]), [3], [0])
        decoder.concat(joining)
        read([2, 3], [4, 1])
        read_rows = [3]
        keep([1])
        read(read_rows, [2])
    return [each for each in found if each]
