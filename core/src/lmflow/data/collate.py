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
    """Rows of tokens, as `collate` and `collate_packed` make them: all tensors but the extras are (B, T).

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
    trained: Tensor
    """Whether a token is a target."""
    predictors: Tensor
    """Places in the flattened rows of what predicts a target, (N,) int64: known here, so that no device is asked."""
    segments: Tensor
    """Which of `sequences` a token belongs to; -1 where padding is."""
    sequences: Sequence[TokenSequence]
    """What the rows are made of, in row order."""
    tokens: int
    """Tokens that are not padding."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of the model, those of all rows one after the other."""

    @property
    def trained_tokens(self) -> int:
        """Number of targets; a row's or sample's first token is never one."""
        return len(self.predictors)

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
            trained=change(self.trained),
            predictors=change(self.predictors),
            segments=change(self.segments),
            extras={name: change(value) for name, value in self.extras.items()},
        )


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> Batch:
    """One sequence per row, padded on the right; extras concatenated in row order."""
    shape = len(sequences), max(len(sequence) for sequence in sequences)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    trained = torch.zeros(shape, dtype=torch.bool)
    segments = torch.full(shape, -1)
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        segments[row, :length] = row
        input_ids[row, :length] = torch.tensor(sequence.ids)
        attention_mask[row, :length] = 1
        trained[row, :length] = torch.tensor(sequence.trained)
    trained[:, 0] = False
    positions = torch.arange(shape[1]).expand(shape)
    tokens, extras = int(attention_mask.sum()), _concatenate_extras(sequences)
    return Batch(
        input_ids, positions, attention_mask, trained, predictors_of(trained), segments, sequences, tokens, extras
    )


def collate_packed(rows: Sequence[Sequence[TokenSequence]], pad_id: int) -> Batch:
    """Several sequences per row, positions beginning again at each; what is left of a row is a segment of padding."""
    lengths = [sum(len(sequence) for sequence in row) for row in rows]
    shape = len(rows), max(lengths)
    input_ids = torch.full(shape, pad_id)
    position_ids = torch.zeros(shape, dtype=torch.long)
    trained = torch.zeros(shape, dtype=torch.bool)
    segments = torch.full(shape, -1)
    numbers = count()
    for index, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence)
            segments[index, start:end] = next(numbers)
            input_ids[index, start:end] = torch.tensor(sequence.ids)
            position_ids[index, start:end] = torch.arange(len(sequence))
            trained[index, start:end] = torch.tensor(sequence.trained)
            trained[index, start] = False
            start = end
        position_ids[index, start:] = torch.arange(shape[1] - start)
    flat = [sequence for row in rows for sequence in row]
    return Batch(
        input_ids,
        position_ids,
        None,
        trained,
        predictors_of(trained),
        segments,
        flat,
        sum(lengths),
        _concatenate_extras(flat),
    )


def predictors_of(trained: Tensor) -> Tensor:
    """Places in the flattened (B, T) of what predicts a target: those before one, in the same row."""
    mask = torch.zeros_like(trained)
    mask[:, :-1] = trained[:, 1:]
    return mask.flatten().nonzero().squeeze(-1)


def _concatenate_extras(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    names = dict.fromkeys(name for sequence in sequences for name in sequence.extras)
    return {name: torch.cat([s.extras[name] for s in sequences if name in s.extras]) for name in names}
