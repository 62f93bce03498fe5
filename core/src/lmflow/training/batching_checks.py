"""Checks that a token's probability depends on the tokens before it in its sample, and on nothing else.

In float32 a batch is compared with each sample alone. In fewer bits that comparison is coarse, since other shapes round
differently: there the same shapes are computed with other content around a sample, which changes nothing at all, or in
models of experts as little as other rows do; and comparison with each sample alone allows for the rounding that a
causal model shows by itself when its text goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.formatting import counted
from lmflow.inference.comparing import (
    EQUAL_FLOOR,
    EQUAL_NOISE,
    FLOOR,
    NOISE,
    distance,
    judgeable,
    looks_ahead,
    not_causal,
    type_of,
)
from lmflow.models.language_model import LanguageModel
from lmflow.models.quantization import computes_in_float32
from lmflow.training.loss import forward_inputs, target_logprobs, target_mask

OFF = 5e-4
"""Largest difference of a token's log-probability that is rounding in float32, in nats or as a share of it."""
HEAD_OFF = 0.1
"""The same in fewer bits, where only the output head is computed in another way: a share of the mean."""


@contextmanager
def exactly(model: LanguageModel) -> Iterator[None]:
    """Without autocast, where the weights are float32 and the attention can compute with them."""
    attention = str(getattr(getattr(model.module, "config", None), "_attn_implementation", ""))
    if not computes_in_float32(model.module) or "flash" in attention:
        yield
        return
    with torch.autocast(model.device.type, enabled=False):
        yield


def is_low_precision(model: LanguageModel) -> bool:
    """Whether anything is computed in fewer bits than float32."""
    return not computes_in_float32(model.module) or torch.is_autocast_enabled(model.device.type)


@torch.no_grad()
def check_causal(model: LanguageModel, probes: Sequence[TokenSequence]) -> None:
    """Later tokens change nothing of what the model says of earlier ones. Raises TrainingError where they do.

    Sequences with further inputs are left out: those belong to tokens, which cannot be exchanged.
    """
    usable = [probe for probe in probes if not probe.model_inputs and len(probe) > 2]
    if not usable:
        return
    probe = usable[-1]
    kept = len(probe) - max(1, len(probe) // 3)
    other = replace(probe, ids=[*probe.ids[:kept], *changed(model, probe.ids[kept:])])
    one, two = (logits_of(model, collate([each], model.pad_id))[0, :kept] for each in (probe, other))
    check_finite(one)
    if looks_ahead(one, two, company_limit(model, probe)):
        raise TrainingError(f"Self-test: {not_causal(model.module)}")


def company_limit(model: LanguageModel, probe: TokenSequence) -> float:
    """The largest difference, at equal shapes, that other rows beside a sequence bring about: 0 but for experts."""
    with_one, with_other = (
        logits_of(model, collate([probe, beside], model.pad_id))[0] for beside in (probe, reversed_of(probe))
    )
    return EQUAL_NOISE * float(distance(with_other, with_one).max()) + EQUAL_FLOOR


@torch.no_grad()
def check_batching(model: LanguageModel, probes: Sequence[TokenSequence], *, packing: bool) -> None:
    """Each target's log-probability in a batch is what it is for its sample alone, computed with every logit.

    Tokens are compared rather than the summed loss, which an untrained model hardly changes when samples leak. Raises
    TrainingError where it is another, and where it is no finite number.
    """
    alone = torch.cat([all_logprobs(model.module, collate([p], model.pad_id).to(model.device)) for p in probes])
    check_finite(alone)
    batch = collate_packed([list(probes)], model.pad_id) if packing else collate(list(probes), model.pad_id)
    batch = batch.to(model.device)
    together = target_logprobs(model.module, model.module, batch)[0]
    off = (together - alone).abs()
    if is_low_precision(model):
        plain = all_logprobs(model.module, batch)
        head = (together - plain).abs().mean() / plain.abs().mean().clamp(min=1.0)
        wrong = not head <= HEAD_OFF or depends_on_shapes(model, probes, batch)
    else:
        wrong = not bool((off <= OFF * alone.abs().clamp(min=1.0)).all())
    if wrong:
        how = "packed into one row" if packing else "padded into one batch"
        raise TrainingError(
            f"Self-test: the loss depends on the batch: {-alone.sum():.5f} nats for {counted(len(probes), 'sample')} "
            f"alone, {-together.sum():.5f} {how} (largest difference of a token {off.max():.2g}). "
            f"{advice(model, packing)}"
        )
    if any(probe.model_inputs for probe in probes):
        return  # inputs that belong to places among the tokens, of which no other order can be asked
    if packing:
        check_isolation(model, probes)
    else:
        check_company(model, probes)


def depends_on_shapes(model: LanguageModel, probes: Sequence[TokenSequence], batch: Batch) -> bool:
    """Whether the logits of a sample in the batch are other than alone by more than rounding, at half its positions.

    How much rounding there is shows where a sample's text goes on, which changes nothing but shapes.
    """
    found = logits_of(model, batch)
    segments = batch.segment_ids
    for number, probe in enumerate(probes):
        [alone] = logits_of(model, collate([probe], model.pad_id))
        off = distance(found[segments == number], alone).median()
        noise = torch.zeros(())
        if not probe.model_inputs:
            longer = replace(
                probe, ids=[*probe.ids, *reversed(probe.ids)], loss_mask=[*probe.loss_mask, *probe.loss_mask]
            )
            noise = distance(logits_of(model, collate([longer], model.pad_id))[0, : len(probe)], alone).median()
        if not float(off) <= max(FLOOR[False], NOISE * float(noise)):
            return True
    return False


@torch.no_grad()
def check_company(model: LanguageModel, probes: Sequence[TokenSequence]) -> None:
    """Neither what stands where a row is padded nor what stands in other rows changes a sample.

    Shapes are the same, so that it holds to the bit but for models of experts, where other rows show how much they
    round. Raises TrainingError.
    """
    if len(probes) < 2:
        return
    shortest, longest = min(probes, key=len), max(probes, key=len)
    pair = collate([shortest, longest], model.pad_id)
    plain = logits_of(model, pair)[0, : len(shortest)]
    filled = replace(
        pair, input_ids=torch.where(pair.segment_ids < 0, changed(model, [model.pad_id])[0], pair.input_ids)
    )
    padded = distance(logits_of(model, filled)[0, : len(shortest)], plain).mean()
    other = collate([shortest, reversed_of(longest)], model.pad_id)
    rows = distance(logits_of(model, other)[0, : len(shortest)], plain).mean()
    experts = has_experts(model.module)
    for what, leak, limit in (
        ("what stands in its padding", padded, EQUAL_NOISE * float(rows) if experts else 0.0),
        ("what stands in other rows", rows, FLOOR[not is_low_precision(model)] if experts else 0.0),
    ):
        if not float(leak) <= limit + EQUAL_FLOOR:
            raise TrainingError(
                f"Self-test: a sample changes with {what} (by {leak:.2g} standard deviations of its logits). "
                f"{advice(model, packing=False)}"
            )


def has_experts(module: nn.Module) -> bool:
    """Whether which products are computed together depends on the tokens: experts, or columns that int8 leaves out."""
    return any("expert" in name.lower() or "8bit" in type(part).__name__ for name, part in module.named_modules())


@torch.no_grad()
def check_isolation(model: LanguageModel, probes: Sequence[TokenSequence]) -> None:
    """What stands before a sample in its row does not change it, by more than it does in rows of their own.

    In low precision, comparison with each sample alone is too coarse to see a leak into a sample's first tokens (BLOOM,
    Mamba and LFM2 passed); here shapes are equal, so that models without one differ by nothing, and those of experts
    by as much as without packing. All positions are compared: a short answer has one or two targets.
    """
    last = max(probes, key=len)
    pairs = [[first, last] for first in (last, reversed_of(last))]
    packed, apart = (
        [logits_of(model, batch)[batch.segment_ids == 1] for batch in batches]
        for batches in (
            [collate_packed([pair], model.pad_id) for pair in pairs],
            [collate(pair, model.pad_id) for pair in pairs],
        )
    )
    leak, noise = (float(distance(other, one).mean()) for one, other in (packed, apart))
    if not leak <= EQUAL_NOISE * noise + EQUAL_FLOOR:
        raise TrainingError(
            f"Self-test: a sample changes with what is packed into one row before it (by {leak:.2g} standard "
            f"deviations of its logits). {advice(model, packing=True)}"
        )


def advice(model: LanguageModel, packing: bool) -> str:
    """What to do about a model whose samples depend on their batch."""
    if packing:
        return f"A model of type {type_of(model.module)} lets packed samples see each other. Set --data.packing false."
    return (
        f"A model of type {type_of(model.module)} does not support padded batches. Set --training.micro_batch_size 1."
    )


def check_finite(values: Tensor) -> None:
    """Raise TrainingError for logits or log-probabilities that nothing can be compared with."""
    fine = judgeable(values) if values.dim() > 1 else bool(values.isfinite().all())
    if not fine:
        raise TrainingError(
            "Self-test: the model's logits are not finite numbers before the first step: its weights are damaged, or "
            "their range is too large for this precision (try --training.precision fp32)."
        )


def reversed_of(sequence: TokenSequence) -> TokenSequence:
    """The same tokens from the last to the first: as long, and another text."""
    return replace(sequence, ids=list(reversed(sequence.ids)))


def changed(model: LanguageModel, ids: Sequence[int]) -> list[int]:
    """As many other tokens, of those that the model knows."""
    size = model.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return [(i + 1 + size // 3) % size for i in ids]


def logits_of(model: LanguageModel, batch: Batch) -> Tensor:
    """Logits of every position, (B, T, V) float32."""
    logits: Tensor = model.module(**forward_inputs(batch.to(model.device))).logits
    return logits.float()


def all_logprobs(module: nn.Module, batch: Batch) -> Tensor:
    """Log-probabilities of the targets, (N,), from the logits of every position: the plain reference."""
    logits: Tensor = module(**forward_inputs(batch)).logits.float()
    mask = target_mask(batch.loss_mask)
    targets = torch.roll(batch.input_ids, -1, dims=1)
    return -nn.functional.cross_entropy(logits[mask], targets[mask], reduction="none")
