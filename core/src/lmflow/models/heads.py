"""Heads that aligners add to a model: built from the seed, kept in a folder beside the weights, and read again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmflow.components import Head
from lmflow.errors import LmflowError

HEADS = "aligner_heads"
"""The submodule that holds the heads of a model under training: part of the names of their parameters."""
FOLDER, WEIGHTS, CONFIG = "heads", "heads.safetensors", "heads.json"
"""Where they lie beside a model: in a folder, since other tools read every file of weights in a model's directory."""
NAME = re.compile(r"[a-z][a-z0-9_]*")


class HeadLayers(nn.Sequential):
    """The layers of a head: (…, hidden size) to (…, outputs)."""

    def __init__(self, head: Head, hidden_size: int) -> None:
        sizes = [hidden_size, *head.hidden, head.outputs]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [*([nn.Tanh()] if layers else []), nn.Linear(inputs, outputs, head.bias, dtype=torch.float32)]
        super().__init__(*layers)
        self.head = head
        self.hidden_size = hidden_size

    @property
    def shape(self) -> dict[str, Any]:
        """What decides which weights fit."""
        return shape_of(self.head, self.hidden_size)


def shape_of(head: Head, hidden_size: int) -> dict[str, Any]:
    """What decides which weights fit a head."""
    return {"hidden_size": hidden_size, "outputs": head.outputs, "hidden": list(head.hidden), "bias": head.bias}


# Adding


def attach_heads(
    module: nn.Module, saved: Mapping[str, HeadLayers], wanted: Mapping[str, Head], seed: int, source: str
) -> dict[str, HeadLayers]:
    """The heads that are wanted, which train: those `saved` with the model at `source`, or new ones of the seed.

    They are part of the module from now on. Raises LmflowError for a name that cannot be a parameter's, and a head that
    was saved in another shape.
    """
    if not wanted:
        return {}
    size = hidden_size(module)
    for name, head in wanted.items():
        check_shape(name, head, size, saved, source)
    found = {name: saved.get(name) or new_head(name, head, size, seed) for name, head in wanted.items()}
    attached = nn.ModuleDict(found).requires_grad_(True)
    module.add_module(HEADS, attached.to(next(module.parameters()).device))
    return found


def check_shape(name: str, head: Head, size: int, saved: Mapping[str, HeadLayers], source: str) -> None:
    """Raise LmflowError where a head of this name was saved, and in another shape."""
    asked = shape_of(head, size)
    if name in saved and saved[name].shape != asked:
        raise LmflowError(
            f"{source}: its head {name} has the shape {saved[name].shape}, and the aligner wants {asked}. Give the "
            f"aligner the options that it was trained with, or remove the folder {FOLDER} to begin with a new head."
        )


def new_head(name: str, head: Head, size: int, seed: int) -> HeadLayers:
    """A head of random weights that depend on its name and the seed alone, the same in every process."""
    if not NAME.fullmatch(name):
        raise LmflowError(f"a head cannot be called {name!r}: small letters, digits and _ make up a name")
    if min((head.outputs, *head.hidden)) < 1:
        raise LmflowError(f"head {name}: every layer needs at least one output; got {head}")
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:6], "big"))
        layers = HeadLayers(head, size)
        for each in layers:
            if isinstance(each, nn.Linear):
                start_layer(each, zero=head.starts_at_zero and each is layers[-1])
    return layers


@torch.no_grad()
def start_layer(layer: nn.Linear, *, zero: bool) -> None:
    """Give a layer its first weights; biases are zero."""
    nn.init.normal_(layer.weight, std=0.0 if zero else (layer.in_features + 1) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def hidden_size(module: nn.Module) -> int:
    """Size of the hidden states that the output embeddings are given."""
    output: Any = module.get_output_embeddings()  # type: ignore[operator]  # every causal language model has it
    return int(output.weight.shape[-1])


def is_head(parameter: str) -> bool:
    """Whether a parameter, by its name in the module, is one of a head: those are no tuner's business."""
    return parameter.startswith(f"{HEADS}.")


def split_heads(parameters: Iterable[str]) -> tuple[list[str], list[str]]:
    """Parameters of heads, which train at every step, and the others, which the tuner knows."""
    names = list(parameters)
    return [name for name in names if is_head(name)], [name for name in names if not is_head(name)]


def heads_of(parameters: Iterable[str]) -> list[str]:
    """The names of the heads whose parameters are among these."""
    return list(dict.fromkeys(name.split(".")[1] for name in parameters if is_head(name)))


def listed(names: Iterable[str]) -> str:
    """Heads by name, in words."""
    names = list(names)
    return f"the head{'s' * (len(names) > 1)} {', '.join(names)}"


# Files


@contextmanager
def heads_apart(module: nn.Module) -> Iterator[None]:
    """Within the context the module is as it was before heads were added, to be written as other tools know it."""
    attached = module._modules.pop(HEADS, None)
    try:
        yield
    finally:
        if attached is not None:
            module.add_module(HEADS, attached)


def write_heads(heads: Mapping[str, HeadLayers], directory: Path) -> None:
    """Write the heads of the model at `directory` into its folder; nothing where there are none."""
    from safetensors.torch import save_file

    if not heads:
        return
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, layers in heads.items()
        for key, value in layers.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    shapes = {name: layers.shape for name, layers in heads.items()}
    (folder / CONFIG).write_text(json.dumps(shapes, indent=2) + "\n", encoding="utf-8")


def read_heads(directory: str | Path) -> dict[str, HeadLayers]:
    """The heads that lie beside the model at `directory`, frozen and in float32; none where there is no such folder.

    Raises LmflowError where they are damaged.
    """
    from safetensors.torch import load_file

    folder = Path(directory).expanduser() / FOLDER
    if not head_names(directory):
        return {}
    try:
        shapes = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        return {name: _read(name, dict(shape), tensors) for name, shape in shapes.items()}
    except Exception as error:  # safetensors has its own, and wrong shapes are of many kinds
        raise LmflowError(f"{folder} is damaged: {error}") from error


def _read(name: str, shape: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> HeadLayers:
    size = shape.pop("hidden_size")
    with torch.random.fork_rng(devices=[]):
        layers = HeadLayers(Head(**{**shape, "hidden": tuple(shape["hidden"])}), size)
    prefix = f"{name}."
    layers.load_state_dict({key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)})
    layers.requires_grad_(False).eval()
    return layers


def head_names(directory: str | Path) -> list[str]:
    """The names of the heads that lie beside the model at `directory`."""
    file = Path(directory).expanduser() / FOLDER / CONFIG
    if not file.is_file():
        return []
    try:
        return sorted(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise LmflowError(f"{file} is damaged: {error}") from error
