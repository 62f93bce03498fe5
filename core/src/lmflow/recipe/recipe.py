"""The recipe: the complete, validated description of one run, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmflow.components import (
    Aligner,
    Attention,
    Component,
    Context,
    DataFormat,
    Inferencer,
    Model,
    Optimizer,
    Reward,
    Schedule,
    Tracker,
    Tuner,
)
from lmflow.plugins import RECIPE_SLOTS
from lmflow.recipe.sections.data import DataOptions, Reading
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.recipe.settings import DATA, PLAIN, SOURCES, TRACKERS, Origin


@dataclass(frozen=True)
class Recipe:
    """One run, ready to be carried out: a component for each slot, None where an optional one is not filled."""

    model: Model
    context: Context | None
    attention: Attention | None
    data: DataOptions
    format: DataFormat | None
    """What records mean; None where that is to be recognised."""
    tuner: Tuner
    optimizer: Optimizer
    schedule: Schedule
    aligner: Aligner
    inferencer: Inferencer
    reward: Reward | None
    training: TrainingOptions
    trackers: Sequence[Tracker] = ()
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    format_options: Mapping[str, Any] = field(default_factory=dict)
    """Options for the format that is recognised, as plain values."""
    names: Mapping[str, str] = field(default_factory=dict)
    """How each slot's component was named, where that is more than its own name (`distribution:name`)."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """The distribution and version that brought each component, by slot and name; the core's own are left out."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe, and the origin of every value by dotted path."""

    recipe: Recipe
    origins: Mapping[str, Origin]


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every one of them explicit."""
    sections: dict[str, Any] = {}
    for slot in RECIPE_SLOTS:
        if slot == DATA:
            name = recipe.names.get(slot)
            sections[slot] = data_as_dict(recipe.data, recipe.format, recipe.format_options, name)
            continue
        part: Component | None = getattr(recipe, slot)
        name = recipe.names.get(slot) or (part.name if part else None)
        sections[slot] = {"name": name, **part.model_dump(mode="json")} if part else None
    trackers = {
        recipe.names.get(f"{TRACKERS}.{each.name}", each.name): each.model_dump(mode="json") for each in recipe.trackers
    }
    plain = {name: getattr(recipe, name).model_dump(mode="json") for name in PLAIN if name != DATA}
    return sections | plain | {TRACKERS: trackers}


def data_as_dict(
    data: Reading, chosen: DataFormat | None, further: Mapping[str, Any], name: str | None = None
) -> dict[str, Any]:
    """The section `data` as it is written: the format (null: to be recognised), all plain options, then its own."""
    own = chosen.model_dump(mode="json") if chosen else further
    return {"name": name or (chosen.name if chosen else None), **data.model_dump(mode="json"), **own}


def dump(recipe: Recipe) -> str:
    """The recipe as YAML. Resolving that text gives the same recipe, and dumping it the same text."""
    from lmflow.recipe.yaml import write

    return write(as_dict(recipe) | ({SOURCES: dict(recipe.sources)} if recipe.sources else {}))
