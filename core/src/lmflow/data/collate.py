"""Token sequences as batches: padded, or packed so that no sample sees another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from lmflow.data.sample import TokenSequence


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, as `collate` and `collate_packed` make them: all tensors but `model_inputs` are (B, T).

    The attention mask is None for packed rows. Those are right only when the model is called with their `position_ids`,
    without a mask and with `use_cache=False`: Transformers then finds the samples in a row by positions that begin
    again at 0 (measured on Llama, GPT-2 and Qwen2; with a cache, its default, samples see each other).
    """

    input_ids: Tensor
    """Token ids, int64; padding is on the right."""
    position_ids: Tensor
    """Positions, which begin at 0 in each sample."""
    attention_mask: Tensor | None
    """1 where a token is, 0 where padding is."""
    loss_mask: Tensor
    """Whether a token is a target."""
    target_positions: Tensor
    """Places in the flattened rows of what predicts a target, (N,) int64: known here, so that no device is asked."""
    segment_ids: Tensor
    """Which of `sequences` a token belongs to; -1 where padding is."""
    sequences: Sequence[TokenSequence]
    """What the rows are made of, in row order."""
    tokens: int
    """Tokens that are not padding."""
    model_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the model, those of all rows one after the other."""

    @property
    def num_targets(self) -> int:
        """Number of targets; a row's or sample's first token is never one."""
        return len(self.target_positions)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._with(lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU fetches from by itself, while the process goes on."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            attention_mask=None if self.attention_mask is None else change(self.attention_mask),
            loss_mask=change(self.loss_mask),
            target_positions=change(self.target_positions),
            segment_ids=change(self.segment_ids),
            model_inputs={name: change(value) for name, value in self.model_inputs.items()},
        )


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> Batch:
    """One sequence per row, padded on the right; `model_inputs` concatenated in row order."""
    shape = len(sequences), max(len(sequence) for sequence in sequences)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    segment_ids = torch.full(shape, -1)
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        segment_ids[row, :length] = row
        input_ids[row, :length] = torch.tensor(sequence.ids)
        attention_mask[row, :length] = 1
        loss_mask[row, :length] = torch.tensor(sequence.loss_mask)
    loss_mask[:, 0] = False
    positions = torch.arange(shape[1]).expand(shape)
    tokens, model_inputs = int(attention_mask.sum()), _concatenate_inputs(sequences)
    return Batch(
        input_ids,
        positions,
        attention_mask,
        loss_mask,
        target_positions_of(loss_mask),
        segment_ids,
        sequences,
        tokens,
        model_inputs,
    )


def collate_packed(rows: Sequence[Sequence[TokenSequence]], pad_id: int) -> Batch:
    """Several sequences per row, positions beginning again at each; what is left of a row is a segment of padding."""
    lengths = [sum(len(sequence) for sequence in row) for row in rows]
    shape = len(rows), max(lengths)
    input_ids = torch.full(shape, pad_id)
    position_ids = torch.zeros(shape, dtype=torch.long)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    segment_ids = torch.full(shape, -1)
    numbers = count()
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence)
            segment_ids[index, start:end] = next(numbers)
            input_ids[index, start:end] = torch.tensor(sequence.ids)
            position_ids[index, start:end] = torch.arange(len(sequence))
            loss_mask[index, start:end] = torch.tensor(sequence.loss_mask)
            loss_mask[index, start] = False
            start = end
        position_ids[index, start:] = torch.arange(shape[1] - start)
    flat = [sequence for row in rows for sequence in row]
    return Batch(
        input_ids,
        position_ids,
        None,
        loss_mask,
        target_positions_of(loss_mask),
        segment_ids,
        flat,
        sum(lengths),
        _concatenate_inputs(flat),
    )


def target_positions_of(loss_mask: Tensor) -> Tensor:
    """Places in the flattened (B, T) of what predicts a target: those before one, in the same row."""
    mask = torch.zeros_like(loss_mask)
    mask[:, :-1] = loss_mask[:, 1:]
    return mask.flatten().nonzero().squeeze(-1)


def _concatenate_inputs(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    names = dict.fromkeys(name for sequence in sequences for name in sequence.model_inputs)
    return {name: torch.cat([s.model_inputs[name] for s in sequences if name in s.model_inputs]) for name in names}
