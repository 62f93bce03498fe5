"""What an inferencer's completions are compared with: every text read anew for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmflow.data.sample import Prompt
from lmflow.inference.types import Completion, Sampling
from lmflow.testing.statistics import reference_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from lmflow.models.language_model import LanguageModel


def greedy(model: LanguageModel, prompt: Prompt, count: int) -> list[int]:
    """The most probable next token, `count` times or until the end of the text, reading everything anew each time."""
    drawn: list[int] = []
    while len(drawn) < count and not (drawn and drawn[-1] in model.end_ids):
        drawn.append(int(next_logits(model, [*prompt.ids, *drawn]).argmax()))
    return drawn


def next_logits(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits (V,) of the token after `ids`, -inf for those that are never sampled."""
    import torch

    with torch.no_grad():
        logits: Tensor = model.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()
    logits[list(model.suppressed_ids)] = -torch.inf
    return logits


def model_logprobs(model: LanguageModel, prompt: Prompt, ids: Sequence[int]) -> list[float]:
    """Log-probability of each of `ids` after the prompt and those before it, among the tokens that may be drawn."""
    logits = (next_logits(model, [*prompt.ids, *ids[:place]]) for place in range(len(ids)))
    return [float(row.log_softmax(-1)[token]) for row, token in zip(logits, ids, strict=True)]


def completion_probabilities(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """The probability of every completion of at most `max_new_tokens` tokens that has one, by its ids."""
    found: dict[tuple[int, ...], float] = {}
    growing: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(1, sampling.max_new_tokens + 1):
        longer: dict[tuple[int, ...], float] = {}
        for ids, probability in growing.items():
            following = reference_probabilities(next_logits(model, [*prompt, *ids]).tolist(), sampling)
            for token, share in following.items():
                done = token in model.end_ids or length == sampling.max_new_tokens
                (found if done else longer)[(*ids, token)] = probability * share
        growing = longer
    return found


def texts(drawn: Sequence[Sequence[Completion]]) -> list[list[tuple[tuple[int, ...], str]]]:
    """Ids and texts of completions, [prompt][sample]."""
    return [[(completion.ids, completion.text) for completion in row] for row in drawn]
