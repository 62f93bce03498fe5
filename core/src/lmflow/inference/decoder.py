"""A model and its key-value cache over a batch of rows: prefill once, then one token per row and step."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache

from lmflow.data.sample import Prompt
from lmflow.errors import LmflowError
from lmflow.inference.kv_cache import concat, growing_cache, is_flexible, trim_left
from lmflow.inference.state_cache import returned_state, select_rows


class RowDecoder(Protocol):
    """Rows that grow by one token at a time; finished ones leave, others may join."""

    @property
    def width(self) -> int:
        """Positions that a row takes, those of the longest."""

    @property
    def flexible(self) -> bool:
        """Whether rows can join."""

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int] | None = None) -> Tensor:
        """Read the prompts and repeat row i `repeats[i]` times: logits of the next token, (R, V) float32."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, (R,), and return the logits of the next, (R, V) float32."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those at the indices `rows`."""

    def concat(self, other: Any) -> None:
        """Add the rows of another decoder of the same class and model below these; both must be flexible."""


class Decoder:
    """Rows in one batch with one cache.

    Prompts are padded on the left, so that the last position of every row is real; positions and mask make the
    padding invisible. The cache is one of growing tensors for models of attention alone, and what the model returns
    for others, whose layers keep states. `masks_steps` says whether the mask is given with every token or with the
    prompts only, as models without attention want it.
    """

    def __init__(self, module: nn.Module, *, masks_steps: bool = True) -> None:
        check_decodable(module)
        self._module = module
        self._device = next(module.parameters()).device
        self._takes = inspect.signature(beneath_adapter(module).forward).parameters
        cache = growing_cache(module.config) if "past_key_values" in self._takes else None
        self._state: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        self._width = 0
        self._padding = torch.empty(0, dtype=torch.long, device=self._device)
        self._padded = False
        self._masks_steps = masks_steps
        self._positioned = "position_ids" in self._takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}

    @property
    def width(self) -> int:
        """Positions in the cache of every row, padding included."""
        return self._width

    @property
    def flexible(self) -> bool:
        """Whether rows can join; not so where the model keeps sliding windows or recurrent states."""
        cache = self._state.get("past_key_values")
        return isinstance(cache, Cache) and is_flexible(cache)

    def prefill(self, prompts: Sequence[Prompt], repeats: Sequence[int] | None = None, *, filler: int = 0) -> Tensor:
        """Read the prompts, each once, and repeat row i `repeats[i]` times: logits of the next token, (R, V).

        `filler` is the token that stands where there is padding.
        """
        lengths = [len(prompt.ids) for prompt in prompts]
        width = max(lengths)
        ids = torch.tensor([[filler] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts])
        self._padding = torch.tensor([width - length for length in lengths], device=self._device)
        self._padded = min(lengths) < width
        logits = self._forward(ids.to(self._device), concatenate_inputs(prompts, self._device))
        if repeats is not None and max(repeats) > 1:
            counts = torch.tensor(repeats, device=self._device)
            repeated = torch.arange(len(prompts), device=self._device).repeat_interleave(counts)
            self._select(repeated)
            logits = logits[repeated]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token per row, (R,), and return the logits of the next, (R, V)."""
        return self._forward(tokens.unsqueeze(-1), {})

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but those at the indices `rows`, and the padding that those have in common."""
        self._select(rows)
        if not self._padded:
            return
        shared = int(self._padding.min())
        if shared and self.flexible:
            trim_left(self._state["past_key_values"], shared)
            self._padding = self._padding - shared
            self._width -= shared
        self._padded = bool(self._padding.any())

    def concat(self, other: Decoder) -> None:
        """Add the rows of another decoder of the same model below these; both must be flexible."""
        concat(self._state["past_key_values"], other._state["past_key_values"])
        width = max(self._width, other._width)
        self._padded = self._padded or other._padded or self._width != other._width
        self._padding = torch.cat([self._padding + width - self._width, other._padding + width - other._width])
        self._width = width

    def _select(self, rows: Tensor) -> None:
        self._state = select_rows(self._state, rows, len(self._padding))
        self._padding = self._padding[rows]

    def _forward(self, ids: Tensor, model_inputs: dict[str, Tensor]) -> Tensor:
        """Logits (R, V) after the last of `ids`, (R, T)."""
        columns = torch.arange(self._width + ids.shape[1], device=self._device)
        inputs: dict[str, Any] = {}
        if self._padded and (self._masks_steps or not self._width):
            # Given only where there is padding: without a mask attention takes a faster way.
            inputs["attention_mask"] = (columns >= self._padding.unsqueeze(-1)).long()
        if self._positioned:
            inputs["position_ids"] = (columns[self._width :] - self._padding.unsqueeze(-1)).clamp_min(0)
        output = self._module(input_ids=ids, use_cache=True, **self._state, **inputs, **self._last_only, **model_inputs)
        self._state = self._state | returned_state(output, self._takes)
        self._width += ids.shape[1]
        logits: Tensor = output.logits[:, -1]
        return logits.float()


@contextmanager
def eval_mode(module: nn.Module, parts: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Every part of `module` in eval mode, and afterwards each in the mode it was in.

    `parts` are those of `module.modules()`, for callers that know them already: finding them takes time.
    """
    training = [part for part in parts or module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def check_decodable(module: nn.Module) -> None:
    """Raise LmflowError for a model that cannot be fed token by token."""
    adapter = getattr(module, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise LmflowError(
            f"Tokens cannot be sampled through a {adapter.peft_type.value} adapter: it puts its virtual tokens "
            "before every forward pass, not only the first. Use an adapter that changes weights, such as LoRA."
        )


def concatenate_inputs(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Tensor]:
    """Further inputs of the model, those of all prompts that have them in row order."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.model_inputs)
    return {
        name: torch.cat([prompt.model_inputs[name] for prompt in prompts if name in prompt.model_inputs]).to(device)
        for name in names
    }


def beneath_adapter(module: Any) -> Any:
    """The model itself, where an adapter wraps it."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module
