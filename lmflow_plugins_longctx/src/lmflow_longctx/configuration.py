"""Rotary positions in a Transformers configuration: finding them, and writing a scaled form that it will load."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lmflow.errors import LmflowError
from lmflow_longctx.frequencies import base_frequencies

WINDOWED = ("sliding_attention", "chunked_attention")
"""Layer types that look back over a window only."""


@dataclass(frozen=True)
class Rotation:
    """How one kind of layer turns queries and keys, and how far it is to reach.

    `kind` is the rope_type before, `dimension` counts the rotated dimensions of a head, `base` is rope_theta. `factor`
    is that of the whole scaling, an earlier one included.
    """

    kind: str
    dimension: int
    base: float
    factor: float
    original_length: int


class Scaling(Protocol):
    """What a method of `lmflow_longctx.contexts` says of itself."""

    name: ClassVar[str]
    composes_with: ClassVar[tuple[str, ...]]
    grows_at_run_time: ClassVar[bool]

    @property
    def factor(self) -> float | None:
        """How many times longer."""

    @property
    def length(self) -> int | None:
        """The new length in tokens."""

    @property
    def original_length(self) -> int | None:
        """Tokens the model was trained with."""

    def parameters(self, rotation: Rotation) -> dict[str, Any]:
        """What to write into `rope_parameters`."""

    def scale(self, frequencies: Tensor, rotation: Rotation) -> tuple[Tensor, float]:
        """The frequencies, (d/2,), that the method makes of the model's, and the factor of queries and keys."""


def extend(config: Any, scaling: Scaling) -> None:
    """Write `scaling` into `config`'s rope_parameters and set its new length; nothing is changed where that fails.

    Per-layer parameters (Gemma 3) are scaled where a layer sees the whole text; a layer whose window is within the
    original length never meets a distance it was not trained on. Raises LmflowError for a model without RoPE, one
    scaled before, a length that is no extension, and a type the architecture does not take.
    """
    text = text_part(config)
    kind = text.model_type
    rope = rope_parameters(text)
    original = scaling.original_length or text.max_position_embeddings
    chosen = layers_to_scale(text, rope, original)
    before = {name: single(rope, name) for name in chosen}
    for parameters in before.values():
        refuse_scaled(kind, parameters, scaling)
    factor = extension(kind, scaling, original)
    changed = deepcopy(text)
    fields = ["rope_parameters", "max_position_embeddings", "original_max_position_embeddings"]
    if not text.is_heterogeneous and getattr(text, "head_dim", 0) is None:
        changed.head_dim = head_size(text)  # Transformers' functions for dynamic and yarn need it written out
        fields.append("head_dim")
    rotations = {}
    for name, parameters in before.items():
        whole = factor * (parameters.get("factor") or 1.0)
        rotation = Rotation(
            parameters["rope_type"], rotated(layer(text, name), parameters), parameters["rope_theta"], whole, original
        )
        rotations[name] = rotation
        kept = {key: value for key, value in parameters.items() if key not in ("rope_type", "type", "factor")}
        write(changed.rope_parameters, name, kept | scaling.parameters(rotation))
    changed.max_position_embeddings = original if scaling.grows_at_run_time else int(original * factor)
    if hasattr(text, "original_max_position_embeddings"):  # Transformers prefers it to the one in rope_parameters
        changed.original_max_position_embeddings = original
    check_accepted(changed, scaling)
    check_frequencies(text, changed, rotations, scaling)
    for field in fields:
        if hasattr(text, field):
            setattr(text, field, getattr(changed, field))


def text_part(config: Any) -> Any:
    """The configuration of the language model within `config`. Raises LmflowError where there is no single one."""
    try:
        return config.get_text_config()
    except ValueError as error:
        raise LmflowError(f"--context cannot extend model type {config.model_type}: {error}") from error


def rope_parameters(text: Any) -> dict[str, Any]:
    """The rope_parameters of a text configuration. Raises LmflowError naming the model type where there are none."""
    found = getattr(text, "rope_parameters", None)
    needed = ("max_position_embeddings", "hidden_size")
    missing = any(getattr(text, name, None) is None for name in needed)
    if not found or missing or getattr(text, "alibi", False):
        raise LmflowError(
            f"--context cannot extend model type {text.model_type}: its configuration has no rotary positions "
            "(rope_parameters with max_position_embeddings), which is what the methods scale. Choose a model with RoPE "
            "(llama, qwen3, mistral, gemma3)."
        )
    text.standardize_rope_params()
    rope: dict[str, Any] = text.rope_parameters
    return rope


def layers_to_scale(text: Any, rope: Mapping[str, Any], original: int) -> list[str | None]:
    """The keys of `rope` whose parameters are to be scaled; [None] where one set is for all layers."""
    refuse_windowed(text, original)
    nested = [key for key in text.nested_rope_parameter_keys(rope) if rope[key] is not None]
    if not nested:
        return [None]
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    bounded = window is not None and window <= original
    return [key for key in nested if not (bounded and key in WINDOWED)] or list(nested)


def refuse_windowed(text: Any, original: int) -> None:
    """Raise LmflowError where every layer looks back over a window only, which it was trained on whole."""
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    types = getattr(text, "layer_types", None)
    everywhere = all(each in WINDOWED for each in types) if types else getattr(text, "sliding_window", None) is not None
    if window is not None and window <= original and everywhere:
        raise LmflowError(
            f"--context: every layer of this {text.model_type} model looks back over {window:,} tokens at most, and it "
            f"was trained on {original:,}, so no distance is new to it however long the text: leave --context out."
        )


def single(rope: Mapping[str, Any], layer_type: str | None) -> dict[str, Any]:
    """The parameters of one kind of layer."""
    return dict(rope if layer_type is None else rope[layer_type])


def write(rope: dict[str, Any], layer_type: str | None, parameters: dict[str, Any]) -> None:
    """Replace the parameters of one kind of layer."""
    target = rope if layer_type is None else rope[layer_type]
    target.clear()
    target.update(parameters)


def refuse_scaled(kind: str, parameters: Mapping[str, Any], scaling: Scaling) -> None:
    """Raise LmflowError where a second scaling on top of the model's own would be neither of the two."""
    present = parameters["rope_type"]
    if present == "default" or present in scaling.composes_with:
        return
    factor = f" by {parameters['factor']:g}" if "factor" in parameters else ""
    raise LmflowError(
        f"--context {scaling.name}: the positions of this {kind} model are already of type {present}{factor}, and two "
        "scalings do not make one (only linear on linear does). Start from the model before it was scaled, with the "
        "whole factor."
    )


def extension(kind: str, scaling: Scaling, original: int) -> float:
    """How many times longer; raises LmflowError where --context.length is no longer than the model's."""
    if scaling.factor is not None:
        return float(scaling.factor)
    assert scaling.length is not None  # one of both is always given
    if scaling.length <= original:
        raise LmflowError(
            f"--context.length {scaling.length}: this {kind} model already reads {original} tokens. Name a longer "
            "length, or leave --context out."
        )
    return scaling.length / original


def rotated(text: Any, parameters: Mapping[str, Any]) -> int:
    """Rotated dimensions of a head."""
    dimension = int(head_size(text) * (parameters.get("partial_rotary_factor") or 1.0))
    if parameters["rope_type"] == "default" and dimension % 2:
        raise LmflowError(
            f"--context: this {text.model_type} model turns {dimension} dimensions of a head, an odd number, for which "
            "none of the methods is defined."
        )
    return dimension


def layer(text: Any, layer_type: str | None) -> Any:
    """The configuration of one kind of layer, where kinds differ in more than their positions (Gemma 4)."""
    return text.per_layer_config[layer_type] if text.is_heterogeneous and layer_type else text


def head_size(text: Any) -> int:
    """Dimensions of a head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def check_accepted(changed: Any, scaling: Scaling) -> None:
    """Raise LmflowError where the configuration, saved and loaded, is refused or becomes another one."""
    try:
        reloaded = type(changed).from_dict(changed.to_dict())
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise unsupported(changed, scaling, str(error)) from error
    if reloaded.rope_parameters != changed.rope_parameters:
        raise unsupported(changed, scaling, f"Transformers makes {reloaded.rope_parameters} of it")
    if parameter_types(changed.rope_parameters, changed) != {"default"} and not reads_rope_type(changed):
        raise unsupported(changed, scaling, "its code does not read rope_type")


def parameter_types(rope: Mapping[str, Any], text: Any) -> set[str]:
    """The RoPE types in use."""
    names = text.nested_rope_parameter_keys(rope) or [None]
    return {single(rope, name)["rope_type"] for name in names if name is None or rope[name] is not None}


def reads_rope_type(text: Any) -> bool:
    """Whether the architecture's code takes its frequencies from Transformers' table; code from outside is trusted."""
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    return architecture is None or hasattr(sys.modules[architecture.__module__], "ROPE_INIT_FUNCTIONS")


def check_frequencies(text: Any, changed: Any, rotations: Mapping[str | None, Rotation], scaling: Scaling) -> None:
    """Raise LmflowError where Transformers would compute other frequencies than the method's formula."""
    for name, rotation in rotations.items():
        found, factor = transformers_frequencies(changed, name, rotation.dimension)
        unscaled = deepcopy(text)
        kept = {key: value for key, value in single(text.rope_parameters, name).items() if key != "factor"}
        kind = "proportional" if rotation.kind == "proportional" else "default"
        write(unscaled.rope_parameters, name, kept | {"rope_type": kind})
        wanted, wanted_factor = scaling.scale(transformers_frequencies(unscaled, name, rotation.dimension)[0], rotation)
        same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=0)
        if not same or abs(factor - wanted_factor) > 1e-6:
            raise unsupported(changed, scaling, "the installed Transformers computes other frequencies from it")


def transformers_frequencies(text: Any, layer_type: str | None, dimension: int) -> tuple[torch.Tensor, float]:
    """The frequencies a model of this configuration starts with, and its factor of queries and keys."""
    parameters = single(text.rope_parameters, layer_type)
    if parameters["rope_type"] == "default":  # each architecture has its own function for it, all with this formula
        return base_frequencies(dimension, parameters["rope_theta"]), 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](text, layer_type=layer_type)
    return frequencies, factor


def unsupported(changed: Any, scaling: Scaling, reason: str) -> LmflowError:
    """The error for an architecture that does not take a method."""
    return LmflowError(
        f"--context {scaling.name}: model type {changed.model_type} does not take it: {reason.strip()}\n"
        "--context ntk needs no type of its own and works with every model that has a rope_theta."
    )
