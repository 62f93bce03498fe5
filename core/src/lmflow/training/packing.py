"""Whether rows are packed, where the recipe leaves that to the run: exactly, and only where padding would cost much."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Literal

import torch

from lmflow.components import Aligner
from lmflow.data.packing import MOST_PADDING as ROW_PADDING
from lmflow.data.packing import plan_epoch
from lmflow.data.sample import Item, TokenSequence
from lmflow.errors import LmflowError, TrainingError
from lmflow.models.device import choose_device
from lmflow.models.language_model import LanguageModel
from lmflow.models.small_copy import FIRST_TOKEN, VOCABULARY, small_copy
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.batches import MICRO_BATCH_TOKENS, padded_batches, sequences_of

MOST_PADDING = 0.1
"""Share of the positions from which on padding is worth packing; packed rows may have as much, for fewer batches."""
STEPS_LOOKED_AT = 200
LENGTHS = (15, 9, 17)
"""Tokens of the sequences that a small copy of the model is tried with."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Whether rows are packed in a run, why, and how long a packed row may be."""

    is_used: bool
    why: str
    """In words, where there was a choice; else empty."""
    row_length: int | None
    padding: float = ROW_PADDING
    """Largest share of padding in a batch of packed rows."""

    def describe(self) -> str:
        """What the user is told of a choice."""
        return f"{'packed' if self.is_used else 'not packed'}: {self.why}"


def choose_packing(
    asked: bool | Literal["auto"],
    aligner: Aligner,
    model: LanguageModel,
    items: Sequence[Item],
    options: TrainingOptions,
    limit: int | None,
    processes: int = 1,
) -> Packing:
    """What `data.packing` comes to for a model that is not yet tuned, whose weights may have no values.

    The same for the same recipe, model and items: `lmflow plan` and the run choose alike. `limit` is the longest
    sequence, and `processes` share each step.
    """
    if asked != "auto" or not aligner.packs:
        return Packing(asked is True, "", limit)
    lengths = list(lengths_of_steps(items, options, processes))
    padding = padding_share(lengths, options)
    if padding <= MOST_PADDING:
        return Packing(False, f"padding is {padding:.0%} of positions", limit)
    if hindrance := packing_hindrance(model, choose_device(options.device)):
        return Packing(False, f"padding is {padding:.0%} of positions, but {hindrance}", limit)
    why = f"padding would be {padding:.0%} of positions"
    return Packing(True, why, row_length(lengths, options, limit), MOST_PADDING)


Lengths = list[tuple[int, ...]]
"""Tokens of the sequences of each item of a step."""


def lengths_of_steps(items: Sequence[Item], options: TrainingOptions, processes: int) -> Iterator[Lengths]:
    """The lengths in the first steps, of those items that the first of the processes goes through."""
    epoch = plan_epoch(len(items), options.batch_size, options.seed, 0)
    for chosen in islice(epoch, min(STEPS_LOOKED_AT, options.max_steps or STEPS_LOOKED_AT)):
        yield [tuple(map(len, sequences_of(items[index]))) for index in chosen[::processes]]


def padding_share(steps: Sequence[Lengths], options: TrainingOptions) -> float:
    """Share of the positions of the micro-batches that would be padding, were none of the steps packed."""
    positions = tokens = 0
    for groups in steps:
        for batch in padded_batches(groups, options):
            lengths = [length for index in batch for length in groups[index]]
            positions += len(lengths) * max(lengths)
            tokens += sum(lengths)
    return 1 - tokens / positions if positions else 0.0


def row_length(steps: Sequence[Lengths], options: TrainingOptions, limit: int | None) -> int:
    """How long rows are packed: as the longest item, or twice that, so that a micro-batch takes no more than unpacked.

    Longer rows would have a little less padding, and attention that grows with their square.
    """
    longest = max(sum(group) for groups in steps for group in groups)
    if options.micro_batch_size is not None:
        return longest
    twice = max(longest, min(2 * longest, MICRO_BATCH_TOKENS))
    return twice if limit is None else max(longest, min(twice, limit))


def packing_hindrance(model: LanguageModel, device: str = "cpu") -> str:
    """Why samples of the model cannot be packed; empty where a small copy of it on that device keeps them apart."""
    if model.kind == "scorer":
        return "the model scores whole sequences"
    config = getattr(model.module, "config", None)
    kind = f"a model of type {getattr(config, 'model_type', type(model.module).__name__)}"
    if getattr(config, "num_attention_heads", None) is None:
        return f"{kind}, without attention, takes what it has read on to the next sample"
    try:
        with on_one_thread():
            small = model.with_module(small_copy(model.module, device))
            check_packing(small, probes())
    except TrainingError:
        return f"{kind} lets packed samples see each other"
    except Exception as error:  # the model's own code, with sizes that it was not written for
        what = str(error).partition("\n")[0] if isinstance(error, LmflowError) else type(error).__name__
        return f"whether {kind} keeps packed samples apart is not known without its weights ({what})"
    return ""


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Within the context torch computes on one thread: products as small as these take longest to be shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def proven(packing: Packing, model: LanguageModel) -> Packing:
    """The same packing, or none where the run chose it and the model itself, which is loaded, lets samples leak."""
    if not (packing.is_used and packing.why):
        return packing
    try:
        with torch.no_grad():
            check_packing(model, probes())
    except TrainingError as error:
        return replace(packing, is_used=False, why=f"{packing.why}, but {error}")
    return packing


def check_packing(model: LanguageModel, sequences: Sequence[TokenSequence]) -> None:
    """Raise TrainingError where the model lets packed samples see each other; see `lmflow.training.batching_checks`."""
    from lmflow.training.batching_checks import check_batching

    check_batching(model, sequences, packing=True)


@cache
def probes() -> tuple[TokenSequence, ...]:
    """Sequences of random tokens that a small copy of any model has."""
    draw = random.Random(0)
    ids = [[draw.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    return tuple(TokenSequence(each, [False] + [True] * (len(each) - 1), "probe") for each in ids)
