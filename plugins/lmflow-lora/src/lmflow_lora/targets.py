"""Which parts of a model LoRA adapts: its linear layers, experts that are held as one parameter, and new tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SCANNED = ("dt_proj", "x_proj")
"""Layers of state-space mixers whose weights the scan reads itself, so that nothing beside them would count."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Where a configuration says how many experts a layer has."""


def linear_layers(model: nn.Module) -> list[str]:
    """Full names of the layers LoRA can adapt.

    What a model derives from a linear layer to give something else than a product, as a router does, is none, nor is
    one whose weight is read without calling the layer.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    def is_linear(layer: nn.Module) -> bool:
        if not isinstance(layer, nn.Linear):
            return isinstance(layer, Conv1D)
        own = type(layer).__module__.startswith("transformers.models.")
        return not own or type(layer).forward is nn.Linear.forward

    return [name for name, module in model.named_modules() if is_linear(module) and not _is_scanned(model, name)]


def _is_scanned(model: nn.Module, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return last in SCANNED and hasattr(model.get_submodule(parent), "A_log")


def block_linear_names(model: Any) -> list[str]:
    """Last names of all linear layers but the output head: those of the blocks that PEFT accepts.

    PEFT matches by suffix, so a full name is given where the last name alone would also match the head, or a layer
    that cannot be adapted.
    """
    head = model.get_output_embeddings()
    linear = {name for name in linear_layers(model) if is_accepted(model, _last(name))}
    others = {name for name, module in model.named_modules() if module is head or name not in linear} - {""}
    full = [name for name in sorted(linear) if name not in others]
    ambiguous = {_last(name) for name in others}
    return sorted({name if _last(name) in ambiguous else _last(name) for name in full})


def is_accepted(model: Any, name: str) -> bool:
    """Whether PEFT adapts layers of this last name in a model of this type."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba  # what it refuses is said nowhere else

    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name)
    except ValueError:
        return False
    return True


def fused_experts(model: Any) -> list[str]:
    """Last two names of parameters that hold a matrix for each expert, (experts, …, …), where others have layers."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    counts = {getattr(text, name, None) for name in EXPERTS} - {None}
    found = {
        ".".join((*module_name.split(".")[-1:], name))
        for module_name, name, parameter in _own_parameters(model)
        if parameter.dim() == 3 and parameter.shape[0] in counts
    }
    return sorted(found)


def token_tables(model: Any, trained: Collection[str]) -> dict[str, list[int]] | None:
    """What PEFT is told to train: the rows of new tokens in the embeddings, and in a head with weights of its own.

    New tokens are those that `lmflow vocabulary` added; None where there are none. `trained` names modules that train
    as a whole anyway.
    """
    from lmflow.models.vocabulary import new_tokens

    ids = new_tokens(model)
    if not ids:
        return None
    tables = [model.get_input_embeddings()]
    if (head := model.get_output_embeddings()) is not None and head.weight is not tables[0].weight:
        tables.append(head)
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(table)] for table in tables if _last(names[id(table)]) not in trained]
    return {name: list(ids) for name in found} or None


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Parameters with the names of their modules, those of convolutions apart."""
    from torch.nn.modules.conv import _ConvNd

    for module_name, module in model.named_modules():
        if not isinstance(module, _ConvNd):
            yield from ((module_name, name, each) for name, each in module.named_parameters(recurse=False))


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
