"""A small model of the same architecture with random weights, to find out what the architecture does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lmflow.errors import LmflowError

HEADS, VOCABULARY = 2, 256
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR = {
    "linear_num_key_heads": HEADS,
    "linear_num_value_heads": HEADS,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""Heads of linear attention, which takes seconds at their full size where no kernel for it is installed."""
LAYERS = 8
"""Most layers; there is at least one of each kind that the architecture has."""
DEVIATION = 0.1
"""Of the weights: large enough for attention to matter."""
FIRST_TOKEN = 3
"""The tokens before it are padding, begin and end."""


def small_copy(module: nn.Module, device: str) -> nn.Module:
    """A model of the module's class with its configuration made small, in eval mode; the weights are always the same.

    Of the module only class and configuration are looked at. Raises LmflowError where no such model can be built.
    """
    config = getattr(module, "config", None)
    if config is None or config.get_text_config() is not config:
        raise LmflowError(f"{type(module).__name__} has no configuration of one language model")
    dtype = torch.bfloat16 if "flash" in str(config._attn_implementation) else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            small: nn.Module = type(module)(shrunken(config))
        except Exception as error:  # each architecture has sizes of its own that must fit together
            raise LmflowError(f"no small {type(module).__name__} can be built: {error}") from error
        for parameter in small.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=DEVIATION)
    return small.to(device, dtype).eval()


def shrunken(config: Any) -> Any:
    """The configuration of a model of the same kinds of layers, heads as wide as before, and else little of each."""
    small = copy.deepcopy(config)
    heads = getattr(config, "num_attention_heads", None) or HEADS
    width = HEADS * max(1, config.hidden_size // heads)
    layers = layers_of_each_kind(config)
    sizes = {
        "hidden_size": width,
        "intermediate_size": width,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS if getattr(config, "num_key_value_heads", None) == heads else 1,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **EXPERTS,
        **LINEAR,
    }
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(small, name, size)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(small, name, value[:layers])
    return small


def layers_of_each_kind(config: Any) -> int:
    """Layers from the first on among which each kind is that the configuration names; two, where it names none.

    Raises LmflowError where those would be many.
    """
    kinds = getattr(config, "layer_types", None) or ["layer"] * 2
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    if needed > LAYERS:
        raise LmflowError(f"the first {LAYERS} layers are not of all kinds")
    return min(max(2, needed), int(config.num_hidden_layers))
