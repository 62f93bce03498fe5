"""What a model keeps between forward passes, whatever class it is: found in what it returns, and its rows chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from lmflow.inference.kv_cache import GrowingLayer

RESULTS = ("logits", "loss", "hidden_states", "attentions", "cross_attentions", "last_hidden_state")
"""What models return and take for other purposes than to go on."""


def returned_state(output: Any, parameters: Collection[str]) -> dict[str, Any]:
    """What the model returned that its next forward pass takes, by the name of the parameter.

    Most say `past_key_values`, Mamba says `cache_params`, RWKV `state`. Empty where it keeps nothing, or in itself.
    """
    fields = output.items() if isinstance(output, Mapping) else vars(output).items()
    return {name: value for name, value in fields if name in parameters and name not in RESULTS and value is not None}


def select_rows(state: Any, rows: Tensor, batch: int) -> Any:
    """The state with the rows at the indices `rows`, of `batch` many, in that order; one may be named several times.

    Every tensor whose first dimension is the batch is gathered: those of a transformers cache and its layers (which are
    changed, and returned), and those in lists and mappings. Their own methods are not used: `batch_select_indices` of
    layers that hold keys and a recurrent state gathers the keys alone.
    """
    # What was replaced is kept until the end: the id of something that is gone may be another's.
    known: dict[int, tuple[Any, Any]] = {}

    def chosen(part: Any) -> Any:
        if id(part) not in known:
            known[id(part)] = part, part  # before its parts, which may lead back to it
            known[id(part)] = part, replaced(part)
        return known[id(part)][1]

    def replaced(part: Any) -> Any:
        if isinstance(part, Tensor):
            has_rows = part.dim() > 0 and part.shape[0] == batch
            return part.index_select(0, rows.to(part.device)) if has_rows else part
        if isinstance(part, Mapping):
            return {name: chosen(value) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return type(part)([chosen(value) for value in part])
        if isinstance(part, GrowingLayer):  # it keeps the room that it reserved
            part.batch_select_indices(rows)
        elif isinstance(part, Cache) or (type(part).__module__.startswith("transformers.") and _has_parts(part)):
            for name, value in list(vars(part).items()):
                setattr(part, name, chosen(value))
        return part

    return chosen(state)


def _has_parts(part: Any) -> bool:
    """Whether an object of transformers may hold tensors; configurations and modules are none of a state's."""
    return hasattr(part, "__dict__") and not isinstance(part, PreTrainedConfig | nn.Module | type)
