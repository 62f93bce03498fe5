"""JSON schema of recipe files, for editors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmflow.components import (
    Component,
)
from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.recipe.settings import (
    DATA,
    OPTIONS_ONLY,
    PLAIN,
    SOURCES,
    TRACKERS,
)


def schema(plugins: Plugins) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file over all installed components, for editors."""
    definitions: dict[str, Any] = {}
    sections: dict[str, Any] = {
        slot: {"anyOf": list(_slot_schemas(plugins, slot, definitions))} for slot in RECIPE_SLOTS
    }
    trackers = _trackers_schema(plugins, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lmflow recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": sections
        | {name: PLAIN[name].model_json_schema() for name in OPTIONS_ONLY}
        | {TRACKERS: trackers, SOURCES: _sources_schema()},
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


def _sources_schema() -> dict[str, Any]:
    text = "Which distribution brought each component, as in `tuner lora: lmflow-lora 0.1.0`; lmflow writes it."
    return {"type": ["object", "null"], "description": text, "additionalProperties": {"type": "string"}}
