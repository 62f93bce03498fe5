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
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.recipe.settings import (
    PLAIN,
    SOURCES,
    TRACKERS,
    Origin,
)


@dataclass(frozen=True)
class Recipe:
    """One run, ready to be carried out: a component for each slot, None where an optional one is not filled."""

    model: Model
    context: Context | None
    attention: Attention | None
    data: DataFormat
    tuner: Tuner
    optimizer: Optimizer
    schedule: Schedule
    aligner: Aligner
    inferencer: Inferencer
    reward: Reward | None
    training: TrainingOptions
    trackers: Sequence[Tracker] = ()
    launch: LaunchOptions = field(default_factory=LaunchOptions)
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
        part: Component | None = getattr(recipe, slot)
        name = recipe.names.get(slot) or (part.name if part else None)
        sections[slot] = {"name": name, **part.model_dump(mode="json")} if part else None
    handle_signals = {
        recipe.names.get(f"{TRACKERS}.{each.name}", each.name): each.model_dump(mode="json") for each in recipe.trackers
    }
    plain = {name: getattr(recipe, name).model_dump(mode="json") for name in PLAIN}
    return sections | plain | {TRACKERS: handle_signals}


def dump(recipe: Recipe) -> str:
    """The recipe as YAML. Resolving that text gives the same recipe, and dumping it the same text."""
    from lmflow.recipe.yaml import write

    return write(as_dict(recipe) | ({SOURCES: dict(recipe.sources)} if recipe.sources else {}))
