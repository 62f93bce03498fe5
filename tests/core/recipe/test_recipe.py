"""The recipe as plain values and as text: every value explicit, and the same again when it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from lmflow.plugins import RECIPE_SLOTS, Plugins, load_plugins
from lmflow.recipe.recipe import Recipe, as_dict, dump
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import PLAIN
from lmflow.testing.runs import as_options


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def recipe(plugins: Plugins, **values: str) -> Recipe:
    return resolve(plugins, None, as_options(**values)).recipe


def test_every_value_is_explicit(plugins: Plugins):
    found = as_dict(recipe(plugins, tuner="lora", tuner__rank="3"))
    assert found.keys() == {*RECIPE_SLOTS, *PLAIN, "trackers"}
    assert found["tuner"]["name"] == "lora"
    assert found["tuner"]["rank"] == 3
    component = plugins.find("tuner", "lora")
    assert found["tuner"].keys() == {"name", *component.model_fields}
    assert found["training"]["seed"] == 0


def test_empty_slots_are_null(plugins: Plugins):
    found = as_dict(recipe(plugins, reward="none"))
    assert found["context"] is None
    assert found["reward"] is None
    assert found["trackers"] == {}


def test_the_way_a_component_was_named_is_kept(plugins: Plugins):
    found = as_dict(recipe(plugins, tuner="lmflow-lora:lora", trackers="mlflow"))
    assert found["tuner"]["name"] == "lmflow-lora:lora"
    assert list(found["trackers"]) == ["mlflow"]


def test_without_a_recorded_name_the_component_s_own_stands(plugins: Plugins):
    found = as_dict(replace(recipe(plugins, tuner="lora"), names={}))
    assert found["tuner"]["name"] == "lora"


def test_text_and_values_are_the_same(plugins: Plugins):
    made = recipe(plugins, tuner="lora", training__learning_rate="1e-4")
    read = yaml.safe_load(dump(made))
    sources = read.pop("plugins")
    assert read == as_dict(made)
    assert sources["tuner lora"].startswith("lmflow-lora ")


def test_the_core_s_own_components_have_no_source(plugins: Plugins):
    made = recipe(plugins, model__path="x/y", data__path="x.jsonl", reward="none")
    assert dict(made.sources) == {}
    assert "plugins:" not in dump(made)
