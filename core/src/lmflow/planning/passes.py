"""The passes without gradients that a run makes beside its steps: of which model, and over how large a batch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lmflow.components import Aligner, LoadRequest, Model
from lmflow.plugins import Plugins
from lmflow.recipe.other_models import other_models
from lmflow.recipe.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from lmflow.data.collate import Batch
    from lmflow.data.sample import Item
    from lmflow.models.language_model import LanguageModel

ITEMS_LOOKED_AT = 100_000
"""Items from the first on among which the longest are sought."""


def computing(recipe: Recipe) -> tuple[str, str]:
    """Device and precision of a recipe."""
    from lmflow.models.device import choose_device, choose_precision

    device = choose_device(recipe.training.device)
    return device, choose_precision(recipe.training.precision, device)


def other_skeletons(recipe: Recipe, plugins: Plugins) -> list[nn.Module]:
    """The models that the aligner uses beside the one it trains, in the run's dtype; equal ones once."""
    import torch

    from lmflow.models.device import DTYPES

    dtype = getattr(torch, DTYPES[computing(recipe)[1]])
    components: list[Model] = []
    for each in other_models(recipe.aligner, plugins).values():
        components += [] if each in components else [each]
    modules = [each.skeleton(LoadRequest(plugins=plugins)).module for each in components]
    return [module.to(dtype).requires_grad_(False) for module in modules]


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a model's weights."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


def asks_in_steps(aligner: Aligner) -> bool:
    """Whether the objective asks the aligner's models in each step; those that `annotate` asks have answered before."""
    return type(aligner).annotate is Aligner.annotate


def largest_validation(recipe: Recipe, model: LanguageModel, items: Sequence[Item]) -> Batch:
    """The largest batch of held-out items, which the trainer goes through without gradients."""
    from lmflow.training.batches import bounded_batches

    batches = bounded_batches(items, model.pad_id, recipe.training.micro_batch_size)
    return max((batch for _, batch in batches), key=weight_of)


def largest_scoring(model: LanguageModel, items: Sequence[Item]) -> Batch:
    """The largest batch in which log-probabilities of items are computed without gradients (`token_logprobs`)."""
    from lmflow.training.batches import bounded_batches, flat, sequences_of
    from lmflow.training.loss import LOGPROB_ROWS

    groups = map(sequences_of, islice(items, ITEMS_LOOKED_AT))
    longest = heapq.nlargest(LOGPROB_ROWS, flat(groups), key=len)
    return max((batch for _, batch in bounded_batches(longest, model.pad_id, LOGPROB_ROWS)), key=weight_of)


def weight_of(batch: Batch) -> tuple[int, int]:
    """What decides how much memory a batch takes: its tokens with padding, then its targets."""
    return batch.input_ids.numel(), batch.num_targets
