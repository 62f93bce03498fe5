"""JSON schema of recipe files, for editors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lmflow.components import (
    Component,
    Model,
)
from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.recipe.settings import (
    DATA,
    OPTIONS_ONLY,
    PLAIN,
    SOURCES,
    STAGES,
    TRACKERS,
)
from lmflow.recipe.stage_names import NAME


def schema(plugins: Plugins) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file over all installed components, for editors."""
    definitions: dict[str, Any] = {}
    sections: dict[str, Any] = {
        slot: {"anyOf": list(_slot_schemas(plugins, slot, definitions))} for slot in RECIPE_SLOTS
    }
    sections |= {name: PLAIN[name].model_json_schema() for name in OPTIONS_ONLY}
    sections |= {TRACKERS: _trackers_schema(plugins, definitions), SOURCES: _sources_schema()}
    definitions |= _stage_schemas(sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lmflow recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": sections | {STAGES: _stages_schema()},
        "$defs": definitions,
    }


def _described(slot: str, component: type[Component], definitions: dict[str, Any]) -> dict[str, Any]:
    """A component's schema; what it refers to goes into `definitions`, under names that only it has."""
    place = f"{slot}.{component.name}"
    described = component.model_json_schema(ref_template=f"#/$defs/{place}.{{model}}")
    definitions |= {f"{place}.{name}": each for name, each in described.pop("$defs", {}).items()}
    return described


def _slot_schemas(plugins: Plugins, slot: str, definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A name, or a mapping of a name, the slot's plain options where it has such, and the component's own.

    A data format need not be named: its options may stand there for the format that is recognised.
    """
    yield {"type": ["string", "null"], "description": f"Name of a {slot}: {', '.join(sorted(plugins.offers(slot)))}."}
    plain = PLAIN[slot].model_json_schema()["properties"] if slot in PLAIN else {}
    for name, offers in sorted(plugins.offers(slot).items()):
        described = _described(slot, offers[0].component, definitions)
        named = {"enum": [name, None]} if slot == DATA else {"const": name}
        described["properties"] = {"name": named, **plain, **described.get("properties", {})}
        yield described


def _trackers_schema(plugins: Plugins, definitions: dict[str, Any]) -> dict[str, Any]:
    """Names, or a mapping from names to their options."""
    offered = sorted(plugins.offers("tracker").items())
    described = {name: _described("tracker", offers[0].component, definitions) for name, offers in offered}
    options = {name: {"anyOf": [{"type": "null"}, each]} for name, each in described.items()}
    names = {"description": f"Names of trackers: {', '.join(options)}."}
    return {
        "anyOf": [
            {"type": ["string", "null"], **names},
            {"type": "array", "items": {"type": "string"}, **names},
            {"type": "object", "properties": options, "additionalProperties": {"type": ["object", "null"]}},
        ]
    }


def _stage_schemas(sections: Iterable[str]) -> dict[str, Any]:
    """Definitions of a stage, whose sections are those of a recipe, and of one with a name, as it stands in a list."""
    model = {"properties": {"name": {"type": "string", "pattern": "^stage:"}}, "required": ["name"]}
    model["properties"] |= Model.model_json_schema()["properties"]
    of_recipe: dict[str, Any] = {section: {"$ref": f"#/properties/{section}"} for section in sections}
    of_recipe["model"] = {"anyOf": [of_recipe["model"], {"type": "object", "additionalProperties": False, **model}]}
    stage = {"type": ["object", "null"], "additionalProperties": False, "properties": of_recipe}
    name = {"type": "string", "pattern": f"^{NAME.pattern}$", "description": "Name of the stage, and of its directory."}
    named = {**stage, "type": "object", "properties": {"name": name, **of_recipe}, "required": ["name"]}
    return {"stage": stage, "named stage": named}


def _stages_schema() -> dict[str, Any]:
    """Stages by name, or a list of stages that have a name."""
    text = "Recipes carried out in order; each may name the result of an earlier one, as in `model: stage:NAME`."
    by_name = {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}, "minProperties": 1}
    return {
        "description": f"{text} Sections beside this one are defaults of every stage.",
        "anyOf": [
            {**by_name, "additionalProperties": {"$ref": "#/$defs/stage"}},
            {"type": "array", "items": {"$ref": "#/$defs/named stage"}, "minItems": 1},
        ],
    }


def _sources_schema() -> dict[str, Any]:
    text = "Which distribution brought each component, as in `tuner lora: lmflow-lora 0.1.0`; lmflow writes it."
    return {"type": ["object", "null"], "description": text, "additionalProperties": {"type": "string"}}
