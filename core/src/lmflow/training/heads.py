"""Heads in an objective: what they make of hidden states, in the same forward pass as the log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch
from lmflow.training.loss import forward_inputs
from lmflow.training.output_head import output_head


@contextmanager
def head_applied(module: nn.Module, head: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Within the context a forward pass of `module` puts what `head` gives at `positions` into the list: (N, outputs).

    `positions` (N,) are places in the flattened rows, such as `batch.target_positions`, whose hidden states predict the
    targets; `target_logprobs` and all that is like it may make the pass. The head is applied within it, where weights
    that are split over processes are together. Results are float32.
    """
    layer = output_head(module).module  # now, because it may try the model with a pass of its own
    found: list[Tensor] = []

    def apply(_: nn.Module, given: tuple[Any, ...]) -> None:
        chosen = given[0].flatten(0, 1).index_select(0, positions)
        found.append(head(chosen.to(next(head.parameters()).dtype)).float())

    handle = layer.register_forward_pre_hook(apply)
    try:
        yield found
    finally:
        handle.remove()


def head_outputs(
    forward: nn.Module, module: nn.Module, batch: Batch, head: nn.Module, positions: Tensor | None = None
) -> Tensor:
    """What `head` gives at `positions`, (N, outputs) float32, where the objective needs no logits.

    By default they are those that predict the targets, in row-major order; for a whole sequence see `last_positions`.
    The output embeddings are computed at a single position and count with a weight of zero: whatever trains has a
    gradient then, as processes that exchange them expect.
    """
    places = batch.target_positions if positions is None else positions
    with head_applied(module, head, places) as found, one_position(output_head(module).module):
        logits: Tensor = forward(**forward_inputs(batch)).logits
    nothing = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool), 0.0).sum()
    return found[0] + nothing.float()


@contextmanager
def one_position(layer: nn.Module) -> Iterator[None]:
    """Within the context the output embeddings see the first position alone."""
    handle = layer.register_forward_pre_hook(lambda _, given: (given[0][:1, :1], *given[1:]))
    try:
        yield
    finally:
        handle.remove()


def last_positions(batch: Batch) -> Tensor:
    """Places in the flattened rows of each sequence's last token, (S,) int64 in the order of `batch.sequences`."""
    owner = batch.segment_ids.flatten()
    count = len(batch.sequences)
    owner = owner.where(owner >= 0, count)  # padding is one more, which is dropped
    places = torch.arange(len(owner), device=owner.device)
    return places.new_zeros(count + 1).scatter_reduce(0, owner, places, "amax")[:count]
