"""JSON schema of recipes: what an editor is told, of everything installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lmflow.components import Model
from lmflow.plugins import RECIPE_SLOTS, load_plugins
from lmflow.recipe.schema import schema


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return schema(load_plugins())


def references(value: Any) -> Iterator[str]:
    """Every `$ref` within."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_it_is_json_of_the_draft_that_it_names(described: dict[str, Any]):
    assert json.loads(json.dumps(described)) == described
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert described["additionalProperties"] is False


def test_what_is_referred_to_is_there(described: dict[str, Any]):
    for reference in references(described):
        here, group, name = reference.split("/", 2)
        assert (here, group in ("$defs", "properties")) == ("#", True)
        assert name in described[group], reference


@pytest.mark.parametrize("slot", [slot for slot in RECIPE_SLOTS if slot != "data"])
def test_a_slot_takes_a_name_or_a_section_of_options(slot: str, described: dict[str, Any]):
    name, *options = described["properties"][slot]["anyOf"]
    assert name["type"] == ["string", "null"]
    for each in options:
        known = each["properties"]["name"]["const"]
        assert known in name["description"]
        assert each["additionalProperties"] is False, f"{known}: a misspelt key is marked by the editor"
        for key, option in each["properties"].items():
            assert key == "name" or option.get("description"), f"{known}.{key}"


def test_bounds_and_choices_are_told(described: dict[str, Any]):
    training = described["properties"]["training"]["properties"]
    assert training["learning_rate"]["exclusiveMinimum"] == 0
    assert training["precision"]["enum"] == ["auto", "fp32", "bf16"]


def test_trackers_are_a_name_a_list_or_options_by_name(described: dict[str, Any]):
    one, several, options = described["properties"]["trackers"]["anyOf"]
    assert one["type"] == ["string", "null"]
    assert several["type"] == "array"
    assert {"tensorboard", "mlflow"} <= options["properties"].keys()


def test_without_plugins_there_are_the_core_s_components():
    alone = schema(load_plugins(()))
    assert alone["properties"].keys() == schema(load_plugins())["properties"].keys()
    assert alone["properties"]["tuner"]["anyOf"][1:] == []


def test_a_stage_has_the_sections_of_a_recipe_but_stages(described: dict[str, Any]):
    by_name, listed = described["properties"]["stages"]["anyOf"]
    assert by_name["additionalProperties"] == {"$ref": "#/$defs/stage"}
    assert listed["items"] == {"$ref": "#/$defs/named stage"}
    stage, named = (described["$defs"][name] for name in ("stage", "named stage"))
    assert stage["properties"].keys() == described["properties"].keys() - {"stages"}
    assert named["properties"].keys() == stage["properties"].keys() | {"name"}
    assert named["required"] == ["name"]
    assert stage["additionalProperties"] is named["additionalProperties"] is False
    assert stage["properties"]["tuner"] == {"$ref": "#/properties/tuner"}


def test_a_stage_may_start_from_another_with_the_options_of_every_model(described: dict[str, Any]):
    usual, result = described["$defs"]["stage"]["properties"]["model"]["anyOf"]
    assert usual == {"$ref": "#/properties/model"}
    assert result["properties"].keys() == {"name", *Model.model_fields}
    assert result["properties"]["name"]["pattern"] == "^stage:"
