"""A model and its key-value cache over a batch of rows: prefill once, then one token per row and step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lmflow.inference.completion import Prompt


class Decoder:
    """Rows that grow by one token at a time; finished ones can leave.

    Prompts are padded on the left, so that the last position of every row is real; positions and mask make the
    padding invisible.
    """

    def __init__(self, module: nn.Module, prompts: Sequence[Prompt], pad_id: int, new_tokens: int) -> None:
        self._module = module
        device = next(module.parameters()).device
        lengths = [len(prompt.ids) for prompt in prompts]
        self._width = max(lengths)
        ids = torch.full((len(prompts), self._width), pad_id)
        mask = torch.zeros(len(prompts), self._width + new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            start = self._width - lengths[row]
            ids[row, start:] = torch.tensor(prompt.ids)
            mask[row, start:] = 1
        self._ids = ids.to(device)
        # Without padding no mask is needed, and attention is faster for it.
        self._mask = mask.to(device) if min(lengths) < self._width else None
        self._next_position = torch.tensor(lengths, device=device)
        self._extras = _concatenate(prompts, device)
        self._cache = DynamicCache(config=_text_config(module))
        self._last_only = {"logits_to_keep": 1} if _takes(module, "logits_to_keep") else {}

    def prefill(self, n: int) -> Tensor:
        """Read the prompts, each once, and repeat every row n times: logits of the next token, (P * n, V)."""
        positions = None
        if self._mask is not None:
            positions = (self._mask[:, : self._width].cumsum(-1) - 1).clamp_min(0)
        logits = self._forward(self._ids, positions, **self._extras)
        if n > 1:
            self._cache.batch_repeat_interleave(n)
            self._next_position = self._next_position.repeat_interleave(n)
            self._mask = None if self._mask is None else self._mask.repeat_interleave(n, dim=0)
            logits = logits.repeat_interleave(n, dim=0)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, (R,), and return the logits of the next, (R, V)."""
        self._width += 1
        logits = self._forward(tokens.unsqueeze(-1), self._next_position.unsqueeze(-1))
        self._next_position = self._next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those at the indices `rows`."""
        self._cache.batch_select_indices(rows)
        self._next_position = self._next_position[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _forward(self, ids: Tensor, positions: Tensor | None, **extras: Any) -> Tensor:
        inputs = {"position_ids": positions} if positions is not None else {}
        output = self._module(
            input_ids=ids,
            attention_mask=None if self._mask is None else self._mask[:, : self._width],
            past_key_values=self._cache,
            use_cache=True,
            **inputs,
            **self._last_only,
            **extras,
        )
        logits: Tensor = output.logits[:, -1]
        return logits.float()


@contextmanager
def for_inference(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and back to the mode before."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _text_config(module: nn.Module) -> Any:
    config: Any = module.config
    return config.get_text_config(decoder=True)


def _takes(module: nn.Module, argument: str) -> bool:
    """Whether the model beneath any adapter takes the argument."""
    base = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    return argument in inspect.signature(base.forward).parameters


def _concatenate(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    names = dict.fromkeys(name for prompt in prompts for name in prompt.extras)
    return {
        name: torch.cat([prompt.extras[name] for prompt in prompts if name in prompt.extras]).to(device)
        for name in names
    }
