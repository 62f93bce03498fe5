"""Checks made on the real model before the first step, in milliseconds, because each has failed silently elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.training.loss import (
    forward_inputs,
    head_restricted_to,
    negative_log_likelihood,
    target_logprobs,
    target_mask,
)
from lmflow.training.precision import replaced_weights
from lmflow.training.trainer import Trainer

PROBE_TOKENS = 48
"""Length the probe sequences are cut to."""


def check_model(trainer: Trainer, sequences: Sequence[TokenSequence], *, packing: bool) -> None:
    """Raise TrainingError naming the check that failed; the model is left exactly as it was.

    Checks that the gradient reaches exactly the parameters the tuner declared, that the logits change once those
    parameters move, and that the loss does not depend on how samples are put into a batch.
    """
    model = trainer.model
    probes = choose_probes(sequences)
    training = model.module.training
    model.module.eval()
    try:
        with trainer.autocast():
            check_batching(model, probes, packing=packing)
            if packing:
                check_isolation(model, probes)
            check_gradients(model, collate(probes, model.pad_id).to(model.device))
            check_movement(model, collate(probes[:1], model.pad_id).to(model.device))
    finally:
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)


def choose_probes(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Up to three sequences of different length, cut around their first targets to at most PROBE_TOKENS."""
    # Those with extras first: some parameters are used for nothing else.
    usable = sorted((s for s in sequences if s.num_targets), key=lambda s: (not s.model_inputs, len(s)))
    if not usable:
        raise TrainingError("No sample has a trained token.")
    chosen = [usable[0], usable[len(usable) // 2], usable[-1]][: len(usable)]
    return [_cut(sequence) for sequence in chosen]


def _cut(sequence: TokenSequence) -> TokenSequence:
    if sequence.model_inputs:  # inputs beyond tokens belong to positions, which a cut would shift
        return sequence
    first = next(i for i, trained in enumerate(sequence.loss_mask) if trained and i > 0)
    start = max(0, first - PROBE_TOKENS // 2)
    window = slice(start, start + PROBE_TOKENS)
    return TokenSequence(sequence.ids[window], sequence.loss_mask[window], sequence.source)


@torch.no_grad()
def check_batching(model: LanguageModel, probes: Sequence[TokenSequence], *, packing: bool) -> None:
    """Each target's log-probability in a batch is what it is for its sample alone, computed with every logit.

    Tokens are compared rather than the summed loss, which an untrained model hardly changes when samples leak.
    """
    alone = torch.cat([all_logprobs(model.module, collate([p], model.pad_id).to(model.device)) for p in probes])
    batch = collate_packed([list(probes)], model.pad_id) if packing else collate(list(probes), model.pad_id)
    together = target_logprobs(model.module, model.module, batch.to(model.device))[0]
    off = (together - alone).abs()
    low_precision = any(p.dtype != torch.float32 for p in model.module.parameters()) or torch.is_autocast_enabled(
        model.device.type
    )
    wrong = off.mean() > 0.05 if low_precision else off.max() > 5e-4
    if wrong:
        how = "packed into one row" if packing else "padded into one batch"
        kind = getattr(getattr(model.module, "config", None), "model_type", "this type")
        advice = (
            f"A model of type {kind} lets packed samples see each other. Set --data.packing false."
            if packing
            else f"A model of type {kind} may not support padded batches."
        )
        raise TrainingError(
            f"Self-test: the loss depends on the batch: {-alone.sum():.5f} nats for {len(probes)} samples alone, "
            f"{-together.sum():.5f} {how} (largest difference of a token {off.max():.2g}). {advice}"
        )


@torch.no_grad()
def check_isolation(model: LanguageModel, probes: Sequence[TokenSequence]) -> None:
    """What stands before a sample in its row does not change it, by more than it does in rows of their own.

    In low precision, comparison with each sample alone is too coarse to see a leak into a sample's first tokens (BLOOM,
    Mamba and LFM2 passed); here shapes are equal, so that models without one differ by nothing, and those of experts
    by as much as without packing.
    """
    last = probes[-1]
    if last.model_inputs:  # inputs that belong to places among the tokens, of which no other order can be asked
        return
    pairs = [[first, last] for first in (last, reversed_of(last))]
    packed, apart = (
        [
            target_logprobs(model.module, model.module, batch.to(model.device))[0][-last.num_targets :]
            for batch in batches
        ]
        for batches in (
            [collate_packed([pair], model.pad_id) for pair in pairs],
            [collate(pair, model.pad_id) for pair in pairs],
        )
    )
    leak, noise = ((one - other).abs().max() for one, other in (packed, apart))
    if leak > 4 * noise + 1e-6:
        kind = getattr(getattr(model.module, "config", None), "model_type", "this type")
        raise TrainingError(
            f"Self-test: a sample changes with what is packed into one row before it (a token by {leak:.2g} nats). "
            f"A model of type {kind} lets packed samples see each other. Set --data.packing false."
        )


def reversed_of(sequence: TokenSequence) -> TokenSequence:
    """The same tokens from the last to the first: as long, and another text."""
    return replace(sequence, ids=list(reversed(sequence.ids)))


def all_logprobs(module: nn.Module, batch: Batch) -> Tensor:
    """Log-probabilities of the targets, (N,), from the logits of every position: the plain reference."""
    logits: Tensor = module(**forward_inputs(batch)).logits.float()
    mask = target_mask(batch.loss_mask)
    targets = torch.roll(batch.input_ids, -1, dims=1)
    return -nn.functional.cross_entropy(logits[mask], targets[mask], reduction="none")


def check_gradients(model: LanguageModel, batch: Batch) -> None:
    """The gradient reaches every parameter that the tuner declared trainable, and no other."""
    with torch.enable_grad():
        negative_log_likelihood(model.module, model.module, batch).backward()  # type: ignore[no-untyped-call]
    missed = [name for name, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
    leaked = [name for name, p in model.module.named_parameters() if not p.requires_grad and p.grad is not None]
    if missed or leaked:
        what = "does not reach" if missed else "reaches the frozen"
        names = missed or leaked
        raise TrainingError(
            f"Self-test: the gradient {what} {len(names)} parameters, such as {', '.join(names[:3])}. "
            "The tuner declares another set of parameters than the model uses."
        )


@torch.no_grad()
def check_movement(model: LanguageModel, batch: Batch) -> None:
    """Moving the trainable parameters changes the logits: an adapter that is loaded is also applied."""
    before = last_logits(model.module, batch)
    with moved(model.module):
        after = last_logits(model.module, batch)
    if torch.equal(before, after):
        raise TrainingError(
            "Self-test: the logits do not change when the trainable parameters move; the adapter is not applied."
        )


def last_logits(module: nn.Module, batch: Batch) -> Tensor:
    """Logits that predict the first row's first target, (1, V)."""
    mask = torch.zeros_like(batch.loss_mask)
    mask[0, int(target_mask(batch.loss_mask)[0].int().argmax())] = True
    with head_restricted_to(module, mask):
        logits: Tensor = module(**forward_inputs(batch)).logits
    return logits.float()


def moved(module: nn.Module) -> AbstractContextManager[None]:
    """Within the context every trainable parameter is shifted by seeded noise; afterwards exactly as before."""
    generator = torch.Generator().manual_seed(0)
    shifted = {}
    for parameter in trainable_parameters(module).values():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        shifted[parameter] = parameter.data + 0.05 * noise
    return replaced_weights(shifted)
