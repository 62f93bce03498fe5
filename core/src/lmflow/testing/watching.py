"""An aligner at work, watched: what it trains on, in how many steps, and whether it leaves the samples as they are."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lmflow.components import AlignContext, Aligner, GenerateRequest, Inferencer
from lmflow.inference.types import Completion
from lmflow.training.batches import sequences_of

if TYPE_CHECKING:
    from lmflow.data.sample import Item, Sample, TokenSequence
    from lmflow.models.language_model import LanguageModel

WORDS = ("one", "two", "three", "area", "four", "idea", "five", "six")


class EndedAnswers(Inferencer):
    """Answers of a word and the token that ends a text: what a trained model samples, and a random one seldom does."""

    name = "ended-answers"

    def generate(self, request: GenerateRequest) -> list[list[Completion]]:
        """Other words for each of a prompt's completions, and other ones for each prompt."""
        return [
            [
                answer(request.model, WORDS[(index + number) % len(WORDS)], each.max_new_tokens)
                for number in range(each.n)
            ]
            for index, each in enumerate(request.samplings)
        ]


def answer(model: LanguageModel, word: str, max_new_tokens: int) -> Completion:
    """The word as a completion that ends."""
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"][: max_new_tokens - 1]
    return Completion((*ids, model.end_ids[0]), word, (-1.0,) * (len(ids) + 1), "eos")


@dataclass
class Watched:
    """What an aligner did."""

    context: AlignContext
    trained: list[TokenSequence] = field(default_factory=list)
    """Every sequence that `trainer.fit` was given."""
    fits: int = 0
    """How often it was called."""
    edited: list[str] = field(default_factory=list)
    """What became of samples that are not as they were, in words."""
    error: Exception | None = None
    """What `align` raised."""

    @property
    def heldout_sources(self) -> list[str]:
        """Held-out records that were trained on: their prompt begins a sequence, and is no training prompt."""
        model, data = self.context.model, self.context.data
        known = {tuple(model.encode_prompt(sample).ids) for sample in data.train}
        prompts = {tuple(model.encode_prompt(sample).ids): sample.source for sample in data.heldout}
        ids = [tuple(each.ids) for each in self.trained]
        return [
            source
            for prompt, source in prompts.items()
            if prompt not in known and any(each[: len(prompt)] == prompt for each in ids)
        ]

    @property
    def trains_an_end(self) -> bool:
        """Whether a token that ends a text is a target anywhere."""
        ends = set(self.context.model.end_ids)
        return any(
            is_target and token in ends
            for each in self.trained
            for token, is_target in zip(each.ids, each.loss_mask, strict=True)
        )


def watch(context: AlignContext, aligner: Aligner) -> Watched:
    """Let the aligner do its work, with an inferencer whose answers end."""
    watched, trainer, data = Watched(context), context.trainer, context.data
    train, heldout = deepcopy(list(data.train)), deepcopy(list(data.heldout))
    trainer.fit = partial(noted_fit, watched, trainer.fit)  # type: ignore[method-assign]
    try:
        aligner.align(replace(context, inferencer=EndedAnswers()))
    except Exception as error:
        watched.error = error
    watched.edited = [
        *differences("data.train", train, data.train),
        *differences("data.heldout", heldout, data.heldout),
    ]
    return watched


def noted_fit(watched: Watched, fit: Any, items: Sequence[Item], **options: Any) -> float:
    """`trainer.fit`, and a note of what it was given."""
    watched.fits += 1
    watched.trained += [sequence for item in items for sequence in sequences_of(item)]
    mean: float = fit(items, **options)
    return mean


def differences(name: str, before: Sequence[Sample], after: Sequence[Sample]) -> list[str]:
    """How samples differ from what they were, in words; nothing where they do not."""
    if len(before) != len(after):
        return [f"{name} had {len(before)} samples and has {len(after)}"]
    changed = [old.source for old, new in zip(before, after, strict=True) if old != new]
    if changed and sorted(map(repr, before)) == sorted(map(repr, after)):
        return [f"{name} is in another order"]
    return [f"{name} has other samples than before at {', '.join(changed[:3])}"] if changed else []


def check_error(watched: Watched) -> None:
    """Raise what `align` raised, if it did."""
    if watched.error is not None:
        raise watched.error
