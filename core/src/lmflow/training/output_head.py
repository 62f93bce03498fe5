"""The last layer of a language model: what follows it, and how to compute in its place what is wanted of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lmflow.training.chunked_loss import IDENTITY, LogitTransform

REACH = 60.0
"""Logits are tried up to this size: caps in use begin to bend at 30."""


@dataclass(frozen=True)
class OutputHead:
    """A model's output embeddings."""

    module: nn.Module
    transform: LogitTransform | None
    """What the model does to their logits; None if that is nothing known, so that only the model itself can tell."""

    @property
    def weight(self) -> Tensor | None:
        """The weight (V, H) of a linear layer as it is; None for adapters on it, quantised ones and others."""
        return self.module.weight if type(self.module) is nn.Linear else None


_known: WeakKeyDictionary[nn.Module, OutputHead] = WeakKeyDictionary()


def output_head(module: nn.Module) -> OutputHead:
    """The head of a causal language model, which is tried once on two tokens to see what becomes of its logits."""
    head: nn.Module = module.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    known = _known.get(module)
    if known is None or known.module is not head:
        known = _known[module] = OutputHead(head, find_transform(module, head))
    return known


@torch.no_grad()
def find_transform(module: nn.Module, head: nn.Module) -> LogitTransform | None:
    """What becomes of logits between the head and the output: found by having the head give a ramp."""
    given: list[Tensor] = []

    def ramp(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        given.append(torch.linspace(-REACH, REACH, output.shape[-1], device=output.device).expand(output.shape))
        return given[-1]

    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    handle = head.register_forward_hook(ramp)
    try:
        tokens = torch.zeros(1, 2, dtype=torch.long, device=next(head.parameters()).device)
        found: Tensor = module(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
        for each, mode in modes:
            each.training = mode
    if len(given) != 1 or found.shape != given[0].shape:
        return None
    before, after = given[0][0, -1], found[0, -1].float()
    cap = configured_cap(module)
    candidates = [IDENTITY, LogitTransform(scale=float(after[-1] / before[-1]))]
    candidates += [LogitTransform(cap=cap)] if cap else []
    fitting = (each for each in candidates if torch.allclose(each.apply(before), after, rtol=1e-5, atol=1e-5))
    return next(fitting, None)


def configured_cap(module: nn.Module) -> float | None:
    """Where the configuration says that logits are bent so as not to pass a limit, the limit."""
    config: Any = getattr(module, "config", None)
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None) if config is not None else None
    return float(cap) if cap else None


@contextmanager
def in_place_of_logits(
    head: nn.Module, compute: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
) -> Iterator[list[Tensor]]:
    """Within the context `compute(hidden (B, T, H), the head's own forward)` is called where logits would be made.

    Its results come in the list. They are the head's output, too, which is how they reach it: whatever gathers split
    weights for the head, and frees them again, attaches itself to what goes in and comes out.
    """
    results: list[Tensor] = []
    own: Callable[[Tensor], Tensor] = head.forward
    had = head.__dict__.get("forward")
    shape: list[torch.Size] = []

    def forward(hidden: Tensor) -> Tensor:
        value = compute(hidden, own)
        shape.append(value.shape)
        return value.reshape(1, 1, -1)  # like logits, for what the model does to them

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        results.append(output.reshape(shape[-1]))

    head.forward = forward
    handle = head.register_forward_hook(keep)
    try:
        yield results
    finally:
        handle.remove()
        del head.forward
        if had is not None:
            head.forward = had
