"""The negative log-likelihood of target tokens, with the output head computed only where there is a target.

Most of a small model's time and memory goes into the head when it is computed for every position; the positions
of prompts and padding never need it, and those that do need it a chunk at a time (`lmflow.training.chunked_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import TokenSequence
from lmflow.training.chunked_loss import IDENTITY, checkpointed_logprobs, chunked_logprobs, chunked_nll
from lmflow.training.output_head import in_place_of_logits, output_head


def target_mask(trained: Tensor) -> Tensor:
    """Positions whose next token is a target: (B, T) bool from (B, T) bool `loss_mask`; the last column is False."""
    mask = torch.zeros_like(trained)
    mask[:, :-1] = trained[:, 1:]
    return mask


@contextmanager
def head_restricted_to(module: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within the context the model's head sees only the positions in `mask` (B, T): logits come as (N, V).

    N is the number of set positions, in row-major order. It works by a temporary hook on the output embeddings,
    so it holds for any architecture that has them and through any wrapper around the model.
    """
    head = module.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][mask], *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def forward_inputs(batch: Batch) -> dict[str, Any]:
    """What the model's forward is given for `batch`.

    Packed batches have no attention mask: Transformers then derives block-diagonal attention from positions that
    start again at 0, but only with `use_cache=False` (measured; with a cache it attends across samples).
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False, **batch.model_inputs}
    if batch.attention_mask is None:
        inputs["position_ids"] = batch.position_ids
    else:
        inputs["attention_mask"] = batch.attention_mask
    return inputs


def target_logits(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) that predict the batch's N targets, the targets (N,), and the mask (B, T) of what predicts them.

    Targets are in row-major order. `forward` is what is called (it may be wrapped for several processes); `unwrapped`
    is the model in it.
    """
    mask = target_mask(batch.loss_mask)
    targets = torch.roll(batch.input_ids, -1, dims=1)[mask]
    with head_restricted_to(unwrapped, mask):
        logits: Tensor = forward(**forward_inputs(batch)).logits
    return logits, targets, mask


def target_logprobs(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, (N,) float32 in row-major order, and the mask (B, T) of what predicts them.

    Differentiable, in bounded memory whatever N and the vocabulary.
    """
    return _score(forward, unwrapped, batch, chunked_logprobs)


def sums_by_sequence(values: Tensor, mask: Tensor, batch: Batch) -> Tensor:
    """Sum of each sequence's `values`, (S,) in the order of `batch.sequences`, from those of its targets, (N,).

    `values` and `mask` are as `target_logprobs` gives them; it is differentiable in `values`.
    """
    return values.new_zeros(len(batch.sequences)).index_add(0, batch.segment_ids[mask], values)


def negative_log_likelihood(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> Tensor:
    """Sum over the batch's targets of -log p(target | tokens before it): a scalar in nats, in bounded memory."""
    scores, _ = _score(forward, unwrapped, batch, chunked_nll)
    return -scores.sum() if scores.dim() else scores


def _score(
    forward: nn.Module, unwrapped: nn.Module, batch: Batch, chunked: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """What `chunked` makes of the targets, and the mask (B, T) of what predicts them.

    A head that is no plain linear layer, or whose logits the model changes in a way not known, gives log-probabilities.
    """
    head = output_head(unwrapped)
    if head.transform is None:
        logits, targets, mask = target_logits(forward, unwrapped, batch)
        return -nn.functional.cross_entropy(logits.float(), targets, reduction="none"), mask
    # By numbers rather than by a mask, of which a GPU would first have to be asked how many it has.
    targets = batch.input_ids.flatten()[batch.target_positions + 1]

    def compute(hidden: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        wanted = hidden.flatten(0, 1).index_select(0, batch.target_positions)
        if head.weight is None:
            return checkpointed_logprobs(wanted, own, targets, head.transform or IDENTITY)
        return chunked(wanted, head.weight, head.module.bias, targets, head.transform)

    with in_place_of_logits(head.module, compute) as results:
        forward(**forward_inputs(batch))
    return results[0], target_mask(batch.loss_mask)


@torch.no_grad()
def sequence_logprobs(
    module: nn.Module, sequences: Sequence[TokenSequence], *, pad_id: int, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Sum of each sequence's target log-probabilities, (len(sequences),) float32, at temperature 1.

    The module is put in eval mode, so dropout does not blur the result, and back again.
    """
    training = module.training
    module.eval()
    totals = torch.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([sequences[i] for i in chosen], pad_id).to(device)
        logprobs, mask = target_logprobs(module, module, batch)
        totals[chosen] = sums_by_sequence(logprobs, mask, batch).cpu()
    module.train(training)
    return totals
