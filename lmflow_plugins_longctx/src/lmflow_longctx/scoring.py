"""Losses of chosen tokens at the end of long rows, whatever a model's positions do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmflow.inference.decoder import eval_mode
from lmflow.models.language_model import LanguageModel

if TYPE_CHECKING:
    from lmflow.components import Log


def ends_of_windows(lengths: Sequence[int], longest: int, stretch: int, most: int) -> list[tuple[int, int]]:
    """(text, end) of windows of up to `longest` tokens whose last `stretch` tokens do not overlap.

    At most `most`, spread evenly over all there are, in the order of the texts of the given `lengths`.
    """
    every = [
        (text, end) for text, length in enumerate(lengths) for end in range(longest, length + 1, stretch) if longest
    ]
    if len(every) <= most:
        return every
    return [every[index * len(every) // most] for index in range(most)]


@torch.no_grad()
def last_token_losses(model: LanguageModel, rows: Sequence[Sequence[int]], count: int) -> Tensor:
    """Negative log-likelihood in nats of the last `count` tokens of rows of one length, (B, count), float32."""
    ids = torch.tensor([list(row) for row in rows], device=model.device)
    logits = model.module(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[:, -(count + 1) : -1]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, -count:].flatten(), reduction="none"
    ).view(len(rows), count)


@torch.no_grad()
def begin_anew(model: LanguageModel) -> None:
    """Make positions forget earlier texts, by a pass over a single token.

    Transformers' dynamic RoPE keeps the frequencies of the longest text so far until it sees one shorter than the
    original length.
    """
    model.module(input_ids=torch.tensor([[model.pad_id]], device=model.device), use_cache=False)


def stretch_loss(
    model: LanguageModel, windows: Sequence[Sequence[int]], stretch: int, batch_size: int, log: Log
) -> float:
    """Mean loss in nats of the last `stretch` tokens of each window; all windows have one length."""
    total = 0.0
    with eval_mode(model.module):
        begin_anew(model)
        for start in range(0, len(windows), batch_size):
            chosen = windows[start : start + batch_size]
            total += last_token_losses(model, chosen, stretch).double().sum().item()
            log.advance(len(chosen))
            log.check_stop()
    return total / (len(windows) * stretch)
