"""A model and its key-value cache over rows that grow by blocks of different length, and shrink again.

What a row has read lies in the cache's columns with holes between: where another row's block was longer, and where
proposals were refused. The attention mask hides holes, so nothing is moved to keep rows apart; columns without a real
token in any row are cut off, and once holes take up too much room the rows are moved together. A single row never has
holes: its cache is only ever cut at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.decoder import beneath_adapter, check_decodable, concatenate_inputs
from lmflow.inference.kv_cache import concat, drop_right, gather, trim_left, whole_cache
from lmflow_speculative.statistics import Passes

HOLES = 0.25
"""Share of the cache that may be holes before rows are moved together, which copies the cache."""


class BlockDecoder:
    """Rows of a model, each with the tokens it has read so far: `lengths`."""

    def __init__(self, module: nn.Module, passes: Passes) -> None:
        check_decodable(module)
        config: Any = module.config
        parameters = inspect.signature(beneath_adapter(module).forward).parameters
        cache = whole_cache(config) if "past_key_values" in parameters else None
        if cache is None:
            raise LmflowError(
                f"Inferencer speculative cannot take back tokens from a model of type {config.model_type}: it "
                "has layers that keep a state instead of keys and values. Use --inferencer hf."
            )
        self._module = module
        self._cache = cache
        self._device = next(module.parameters()).device
        self._positioned = "position_ids" in parameters
        self._keeps = "logits_to_keep" in parameters
        self._passes = passes
        self._aligned = _slides(config)  # a sliding window counts columns, so no hole may lie in it
        self._real: Tensor | None = None
        self.width = 0
        self.lengths: list[int] = []

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int] | None = None) -> Tensor:
        """Read prompts, each once, and repeat row i `repeats[i]` times: logits after the last token, (R, V)."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts])
        lengths = [len(prompt.ids) for prompt in prompts]
        self.lengths = [0] * len(prompts)
        real = None
        if min(lengths) < width:
            real = torch.arange(width) >= width - torch.tensor(lengths).unsqueeze(-1)
        logits = self._forward(ids, lengths, real, 1, concatenate_inputs(prompts, self._device))[:, -1]
        if repeats is not None and max(repeats) > 1:
            rows = [row for row, times in enumerate(repeats) for _ in range(times)]
            self._select(rows)
            logits = logits[rows]
        return logits

    def read(self, blocks: Sequence[Sequence[int]]) -> Tensor:
        """Append a block to each row, some perhaps empty: logits after each of its tokens, (R, W, V) float32.

        W is the length of the longest; what stands after the end of a shorter one means nothing.
        """
        counts = [len(block) for block in blocks]
        width = max(counts)
        ids = torch.tensor([[*block, *[0] * (width - len(block))] for block in blocks])
        real = None if min(counts) == width else torch.arange(width) < torch.tensor(counts).unsqueeze(-1)
        return self._forward(ids, counts, real, width, {})

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget what each row has read beyond its first `lengths[r]` tokens."""
        lengths = [min(length, held) for length, held in zip(lengths, self.lengths, strict=True)]
        removed = {held - length for length, held in zip(lengths, self.lengths, strict=True)}
        self.lengths = lengths
        if self._real is None and len(removed) == 1:
            self._drop_right(removed.pop())
            return
        if removed != {0}:
            keep = torch.tensor(lengths, device=self._device).unsqueeze(-1)
            real = self._mask()
            self._real = real & (real.cumsum(-1) <= keep)
        self._tidy()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._select(rows)
        self._tidy()

    def concat(self, other: BlockDecoder) -> None:
        """Add the rows of another decoder of the same model below these."""
        width = max(self.width, other.width)
        masks = [each._mask() for each in (self, other)]
        padded = [torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks]
        concat(self._cache, other._cache)
        self._real = torch.cat(padded)
        self.width = width
        self.lengths = self.lengths + other.lengths
        self._tidy()

    # Inside

    def _forward(
        self, ids: Tensor, counts: Sequence[int], real: Tensor | None, keep: int, model_inputs: dict[str, Tensor]
    ) -> Tensor:
        """Logits of the last `keep` columns of `ids`, (R, W), of which `real` says what is there (all, if None)."""
        ids = ids.to(self._device)
        block = torch.ones_like(ids, dtype=torch.bool) if real is None else real.to(self._device)
        inputs: dict[str, Any] = {}
        after = None
        if self._real is not None or real is not None:
            after = torch.cat([self._mask(), block], dim=1)
            inputs["attention_mask"] = after.long()
        if self._positioned:
            before = torch.tensor(self.lengths, device=self._device).unsqueeze(-1)
            inputs["position_ids"] = (before + block.long().cumsum(-1) - 1).clamp_min(0)
        if self._keeps:
            inputs["logits_to_keep"] = keep
        output = self._module(input_ids=ids, past_key_values=self._cache, use_cache=True, **inputs, **model_inputs)
        self._real = after
        self.width += ids.shape[1]
        self.lengths = [held + count for held, count in zip(self.lengths, counts, strict=True)]
        self._passes.count += 1
        self._passes.tokens += sum(counts)
        if self._aligned:
            self._tidy()
        logits: Tensor = output.logits[:, -keep:]
        return logits.float()

    def _mask(self) -> Tensor:
        """Which columns hold a token of the row, (R, width) bool."""
        if self._real is not None:
            return self._real
        return torch.ones(len(self.lengths), self.width, dtype=torch.bool, device=self._device)

    def _select(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self._device)
        self._cache.batch_select_indices(index)
        self.lengths = [self.lengths[row] for row in rows]
        if self._real is not None:
            self._real = self._real[index]

    def _tidy(self) -> None:
        """Cut columns that are holes in every row, and move rows together where holes are too many."""
        if self._real is None:
            return
        used = self._real.any(0).nonzero().squeeze(-1)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (self.width, self.width - 1)
        self._drop_right(self.width - 1 - last)
        if first:
            trim_left(self._cache, first)
            self._real = self._real[:, first:]
            self.width -= first
        longest = max(self.lengths)
        if self.width - longest > HOLES * self.width or (self._aligned and self._has_inner_holes()):
            self._compact(longest)
        if min(self.lengths) == self.width:
            self._real = None

    def _drop_right(self, columns: int) -> None:
        if columns:
            drop_right(self._cache, columns)
            self.width -= columns
            if self._real is not None:
                self._real = self._real[:, : self.width]

    def _has_inner_holes(self) -> bool:
        real = self._mask()
        return bool((real[:, :-1] & ~real[:, 1:]).any())

    def _compact(self, width: int) -> None:
        """Move every row's tokens to the right end of `width` columns."""
        assert self._real is not None
        order = self._real.long().argsort(dim=1, stable=True)[:, self.width - width :]
        gather(self._cache, order)
        self._real = self._real.gather(1, order)
        self.width = width


def _slides(config: Any) -> bool:
    """Whether the attention of some layer slides."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text, "sliding_window", None) is not None
