"""Checks made on the real model before the first step, in milliseconds, because each has failed silently elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import Item, TokenSequence
from lmflow.distributed.strategies.base import trainable_parameters
from lmflow.errors import TrainingError
from lmflow.models.heads import heads_of, is_head, listed
from lmflow.models.language_model import LanguageModel
from lmflow.training.batches import flat, sequences_of
from lmflow.training.batching_checks import check_batching, check_causal, exactly, is_low_precision
from lmflow.training.loss import forward_inputs, head_restricted_to, target_mask
from lmflow.training.precision import replaced_weights
from lmflow.training.trainer import Trainer

PROBE_TOKENS = 48
"""Length the probe sequences are cut to."""


def check_model(trainer: Trainer, items: Sequence[Item]) -> None:
    """Raise TrainingError naming the check that failed; the model is left exactly as it was.

    Checks that the gradient of the objective reaches exactly the parameters the tuner declared, that the outputs change
    once those parameters move, and that they do not depend on how samples are put into a batch. `items` are a few, as
    the objective reads them.
    """
    if not items:
        raise TrainingError("Self-test: no sample gives the objective anything to train on.")
    model, packing = trainer.model, trainer.setup.packing
    sequences = flat(sequences_of(item) for item in items)
    probes = choose_probes(sequences, any_target=model.kind != "scorer")
    training = model.module.training
    model.module.eval()
    try:
        with trainer.autocast():
            if model.kind == "scorer":
                check_scores(model, probes, packing=packing)
            else:
                with exactly(model):
                    check_causal(model, probes)
                    check_batching(model, probes, packing=packing)
            check_gradients(trainer, min(items, key=lambda item: sum(map(len, sequences_of(item)))))
            if any(not is_head(name) for name in trainable_parameters(model.module)):
                check_movement(model, collate(probes[:1], model.pad_id).to(model.device))
    finally:
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)


def choose_probes(sequences: Sequence[TokenSequence], *, any_target: bool = True) -> list[TokenSequence]:
    """Up to three sequences of different length, cut around their first targets to at most PROBE_TOKENS."""
    # Those with further inputs first: some parameters are used for nothing else.
    usable = [s for s in sequences if s.num_targets or not any_target]
    if not usable:
        raise TrainingError("No sample has a trained token.")
    usable = sorted(usable, key=lambda s: (not s.model_inputs, len(s)))
    chosen = [usable[0], usable[len(usable) // 2], usable[-1]][: len(usable)]
    return [_cut(sequence) for sequence in chosen]


def _cut(sequence: TokenSequence) -> TokenSequence:
    if sequence.model_inputs:  # inputs beyond tokens belong to positions, which a cut would shift
        return sequence
    first = next((i for i, is_target in enumerate(sequence.loss_mask) if is_target and i > 0), 0)
    start = max(0, first - PROBE_TOKENS // 2)
    window = slice(start, start + PROBE_TOKENS)
    return TokenSequence(sequence.ids[window], sequence.loss_mask[window], sequence.source)


@torch.no_grad()
def check_scores(model: LanguageModel, probes: Sequence[TokenSequence], *, packing: bool) -> None:
    """A scorer's output for a sequence in a batch is what it is for that sequence alone.

    Raises TrainingError where it is not, or where the model cannot tell padding from text.
    """
    if packing:
        raise TrainingError("A model that scores whole sequences reads one in each row. Set --data.packing false.")
    alone = torch.cat([scores(model.module, collate([each], model.pad_id).to(model.device)) for each in probes])
    advice = (
        "The model reads it at the last token that is not padding: "
        "its configuration must name the tokenizer's pad token."
    )
    try:
        together = scores(model.module, collate(list(probes), model.pad_id).to(model.device))
    except ValueError as error:  # Transformers' scorers refuse a batch where they know no padding
        raise TrainingError(f"Self-test: the model gives a batch of sequences no score ({error}) {advice}") from error
    off = (together - alone).abs().max()
    limit = (0.05 if is_low_precision(model) else 5e-4) * alone.abs().max().clamp(min=1.0)
    if not off <= limit:
        raise TrainingError(
            f"Self-test: a sequence's score depends on the batch (largest difference {off:.2g}). {advice}"
        )


def scores(module: nn.Module, batch: Batch) -> Tensor:
    """What a scorer gives for each row, (B, labels) float32."""
    logits: Tensor = module(**forward_inputs(batch)).logits
    return logits.float()


def check_gradients(trainer: Trainer, item: Item) -> None:
    """The objective's gradient reaches every parameter that the tuner declared trainable, and no other."""
    model = trainer.model
    batch = collate(list(sequences_of(item)), model.pad_id).to(model.device)
    with torch.enable_grad():
        loss = trainer.setup.objective(model.module, model.module, batch).total
    if not loss.requires_grad:
        raise TrainingError("Self-test: the objective's loss has no gradient.")
    loss.backward()  # type: ignore[no-untyped-call]
    missed = [name for name, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
    leaked = [name for name, p in model.module.named_parameters() if not p.requires_grad and p.grad is not None]
    if heads := heads_of(missed):
        raise TrainingError(
            f"Self-test: the objective gives no gradient to {listed(heads)}, which the aligner adds to the model. Let "
            "the objective apply it (lmflow.training.heads), or leave it out of Aligner.heads."
        )
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
    outputs = scores if model.kind == "scorer" else last_logits
    before = outputs(model.module, batch)
    with moved(model.module):
        after = outputs(model.module, batch)
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
