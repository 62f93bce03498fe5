"""The negative log-likelihood of target tokens, with the output head computed only where there is a target.

Most of a small model's time and memory goes into the head when it is computed for every position; the positions
of prompts and padding never need it, and those that do need it a chunk at a time (`lmflow.training.chunked_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmflow.components import Log
from lmflow.data.collate import Batch
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import Processes
from lmflow.errors import TrainingError
from lmflow.inference.shard import holds_part
from lmflow.training.batches import bounded_batches
from lmflow.training.chunked_loss import (
    IDENTITY,
    checkpointed_logprobs,
    chunked_logprobs,
    chunked_map,
    chunked_nll,
)
from lmflow.training.output_head import in_place_of_logits, output_head

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

LOGPROB_ROWS = 64
"""Sequences of a pass without gradient at most; the bound of tokens is reached first by all but short ones."""


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


def target_inputs(batch: Batch, name: str) -> Tensor:
    """`objective_inputs[name]` of each sequence, a number for each of its targets: (N,) as `target_logprobs` has them.

    Sequences without targets give none: those of a process that only takes part in what all do.
    """
    parts = [torch.as_tensor(each.objective_inputs[name]) for each in batch.sequences if each.num_targets]
    found = torch.cat(parts) if parts else torch.zeros(0)
    if len(found) != batch.num_targets:
        raise TrainingError(f"objective_inputs[{name!r}]: {len(found)} numbers for {batch.num_targets} targets")
    return found.to(batch.input_ids.device)


def sequence_inputs(batch: Batch, name: str, default: float | None = None) -> Tensor:
    """`objective_inputs[name]` of each sequence, a number: (S,) float32 in the order of `batch.sequences`.

    `default` stands for those that have none. Raises TrainingError, naming the record, without it.
    """
    values = [each.objective_inputs.get(name, default) for each in batch.sequences]
    if None in values:
        raise TrainingError(f"{batch.sequences[values.index(None)].source}: its objective_inputs have no {name!r}")
    return torch.tensor(values, dtype=torch.float32, device=batch.input_ids.device)


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


def target_map(
    forward: nn.Module,
    unwrapped: nn.Module,
    batch: Batch,
    function: Callable[..., Tensor],
    *rows: Tensor,
) -> Tensor:
    """`function(logits (n, V) float32, *parts)` over the batch's N targets in chunks: its results, (N, …).

    The logits are those that predict the targets, in row-major order; `rows` are further tensors of N rows, of which
    each call gets those of its chunk. Differentiable, in bounded memory: see `chunked_map`. For what needs every logit,
    such as an entropy or a divergence from another model.
    """
    head = output_head(unwrapped)
    if head.transform is None:
        logits, _, _ = target_logits(forward, unwrapped, batch)
        return function(logits.float(), *rows)
    transform = head.transform

    def compute(hidden: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        wanted = hidden.flatten(0, 1).index_select(0, batch.target_positions)
        return chunked_map(wanted, lambda part: transform.apply(own(part).float()), function, *rows)

    with in_place_of_logits(head.module, compute) as results:
        forward(**forward_inputs(batch))
    return results[0]


@torch.no_grad()
def target_states(module: nn.Module, batch: Batch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What a frozen model knows of the batch's N targets: hidden states (N, H), and what makes logits (n, V) of them.

    The states are given to `target_map` as further rows, so that the logits of both models exist a chunk at a time.
    Where the model does something unknown to its logits, the states are the logits themselves.
    """
    head = output_head(module)
    if head.transform is None:
        return target_logits(module, module, batch)[0].float(), lambda states: states
    transform, layer = head.transform, head.module

    def select(hidden: Tensor, _: Callable[[Tensor], Tensor]) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, batch.target_positions)

    with in_place_of_logits(layer, select) as results:
        module(**forward_inputs(batch))
    return results[0], lambda states: transform.apply(layer(states).float())


@torch.no_grad()
def token_logprobs(model: LanguageModel, sequences: Sequence[TokenSequence], log: Log | None = None) -> list[Tensor]:
    """Log-probabilities of each sequence's targets, (num_targets,) float32 on the CPU, at temperature 1.

    They are those of the weights as they are now: within `trainer.start_weights()` of the model that training started
    from, with an adapter switched off of the model below it. Call it in `trainer.autocast()` to compute in the run's
    precision. Each pass holds at most MICRO_BATCH_TOKENS padded tokens, or a single longer sequence; the module is in
    eval mode meanwhile, so that dropout does not blur the result.

    With `log` the passes are divided among the processes of the run, which all have to call it and all get the whole
    result, the same as in one process; they advance the current phase by sequences, and stop where the run is asked to.
    """
    module, training = model.module, model.module.training
    processes = Processes() if log is None or holds_part(module) else log.processes

    def score(some: Sequence[tuple[list[int], Batch]]) -> list[list[Tensor]]:
        found = []
        for chosen, batch in some:
            values, mask = target_logprobs(module, module, batch.to(model.device))
            counts = torch.bincount(batch.segment_ids.to(mask.device)[mask], minlength=len(chosen))
            found.append(list(torch.split(values.float().cpu(), counts.tolist())))
            if log is not None:
                log.advance_or_stop(len(chosen))
        return found

    batches = bounded_batches(sequences, model.pad_id, LOGPROB_ROWS)
    module.eval()
    try:
        parts = processes.map_sharded(score, batches)
    finally:
        module.train(training)
    by_index = {i: part for (chosen, _), some in zip(batches, parts, strict=True) for i, part in zip(chosen, some)}
    return [by_index[index] for index in range(len(sequences))]


def sequence_logprobs(model: LanguageModel, sequences: Sequence[TokenSequence], log: Log | None = None) -> Tensor:
    """Sum of each sequence's target log-probabilities, (len(sequences),) float32; see `token_logprobs`."""
    found = token_logprobs(model, sequences, log)
    return torch.stack([each.sum() for each in found]) if found else torch.zeros(0)
