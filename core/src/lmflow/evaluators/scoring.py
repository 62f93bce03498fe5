"""How improbable a model finds each token of a text, however short the model's context is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmflow.components import Log
from lmflow.data.sample import Prompt, TokenSequence
from lmflow.inference.decoder import concatenate_inputs, eval_mode
from lmflow.models.language_model import LanguageModel

IGNORED = -100
"""What cross_entropy takes for no target."""


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `begin` to `end` of a sequence are read; the losses of tokens `first` to `end` (inclusive) are taken.

    The token at `end` is predicted, not read, so that a window of n tokens predicts n.
    """

    sequence: int
    begin: int
    end: int
    first: int

    def __len__(self) -> int:
        return self.end - self.begin


def windows_of(sequence: int, length: int, window: int, stride: int) -> Iterator[Window]:
    """Windows that predict each of `length` tokens but the first exactly once.

    A window reads at most `window` tokens and begins `stride` after the one before, so that beyond the first window a
    token is predicted from at least window - stride + 1 tokens, and in the first from all before it.
    """
    first, begin = 1, 0
    while first < length:
        end = min(begin + window, length - 1)
        yield Window(sequence, begin, end, first)
        first, begin = end + 1, begin + stride


@torch.no_grad()
def token_losses(
    model: LanguageModel,
    sequences: Sequence[TokenSequence],
    window: int | None,
    stride: int,
    batch_tokens: int,
    log: Log,
) -> list[Tensor]:
    """Negative log-likelihood in nats of each token but the first: one float32 tensor (T - 1,) per sequence of T.

    `window` None reads each sequence whole. Rows of a batch are padded on the right, where a causal model does not
    look, and hold at most `batch_tokens` tokens, padding included. Tokens beyond the vocabulary, which stand for other
    inputs such as images and are no targets, have the loss 0.
    """
    losses = [torch.empty(max(len(each) - 1, 0)) for each in sequences]
    windows: list[Window] = []
    for number, sequence in enumerate(sequences):
        widest = len(sequence) if window is None else window
        windows += windows_of(number, len(sequence), widest, stride if window is not None else widest)
    order = sorted(windows, key=len)
    with eval_mode(model.module):
        for batch in _batches(order, batch_tokens):
            for each, found in zip(batch, _losses_of(model, [sequences[w.sequence] for w in batch], batch)):
                losses[each.sequence][each.first - 1 : each.end] = found
            log.advance_or_stop(sum(each.end + 1 - each.first for each in batch))
    return losses


def _batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows, shortest first, as batches whose widest row times their number stays within the limit."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _losses_of(model: LanguageModel, sequences: Sequence[TokenSequence], batch: Sequence[Window]) -> Iterator[Tensor]:
    read = [sequence.cut(window.begin, window.end) for sequence, window in zip(sequences, batch)]
    width = max(len(window) for window in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    for row, piece in enumerate(read):
        ids[row, : len(piece)] = torch.tensor(piece.ids)
    inputs: dict[str, Any] = dict(
        concatenate_inputs([Prompt(each.ids, each.model_inputs) for each in read], model.device)
    )
    lengths = torch.tensor([len(window) for window in batch])
    if int(lengths.min()) < width:
        inputs["attention_mask"] = (torch.arange(width) < lengths.unsqueeze(-1)).long().to(model.device)
    # Only the positions from the first that predicts a wanted token on need an output.
    skipped = min(window.first - 1 - window.begin for window in batch)
    if skipped and "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        inputs["logits_to_keep"] = width - skipped
    else:
        skipped = 0
    logits = model.module(input_ids=ids.to(model.device), use_cache=False, **inputs).logits
    for row, (sequence, window) in enumerate(zip(sequences, batch)):
        at = slice(window.first - 1 - window.begin - skipped, len(window) - skipped)
        targets = torch.tensor(sequence.ids[window.first : window.end + 1], device=model.device)
        targets = targets.masked_fill(targets >= logits.shape[-1], IGNORED)
        yield torch.nn.functional.cross_entropy(
            logits[row, at].float(), targets, reduction="none", ignore_index=IGNORED
        ).cpu()
