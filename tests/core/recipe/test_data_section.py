"""The section `data`: plain options for all formats, and beside them those of the format that is named or recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field, field_validator

from lmflow.components import DataFormat, Tuner
from lmflow.data.sample import Message, Sample
from lmflow.errors import PluginError, RecipeError
from lmflow.plugins import SLOTS, Plugins, load_plugins
from lmflow.plugins.declared_rules import check_component
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import resolve, resolve_parts
from lmflow.recipe.schema import schema
from lmflow.recipe.sections.data import DataOptions, Reading
from lmflow.recipe.settings import Scope
from lmflow.testing.runs import as_options, plugins_with

Write = Callable[[str], Path]


class Spoken(DataFormat):
    """What somebody says."""

    name = "spoken"

    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        return Sample((Message("assistant", str(record)),), False, record, source)


class Loud(Spoken):
    """What somebody says aloud."""

    name = "loud"
    volume: int = Field(1, ge=0, description="How loud.")
    speakers: list[str] = Field([], description="Who speaks.")
    language: str = Field("en", description="Which language.")


class Written(Spoken):
    """What somebody says in another way."""

    name = "written"
    volume: str = Field("1", description="Of how many.")
    language: str = Field("en", description="Which language.")
    pages: int = Field(0, description="How many pages.")


class Broken(Spoken):
    """A format that cannot check its option."""

    name = "broken"
    speakers: list[str] = Field([], description="Who speaks.")

    @field_validator("speakers")
    @classmethod
    def _check(cls, value: list[str]) -> list[str]:
        raise RuntimeError("no")


class Packs(Tuner):
    """A tuner that prefers packed data, and its language."""

    name = "packs"
    preferred = {"data.packing": True, "data.language": "de"}

    def prepare(self, model: Any) -> Any:
        return model


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return plugins_with(Spoken, Loud, Written, Broken, Packs)


def problems(plugins: Plugins, file: Path | None = None, **values: str) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, file, as_options(**values))
    return str(caught.value)


def test_one_section_for_the_user_two_parts_of_the_recipe(plugins: Plugins, write: Write):
    file = write("data: {name: loud, path: x.jsonl, packing: true, volume: 3, speakers: [a, b]}\n")
    resolved = resolve(plugins, file, as_options(data__limit="7", data__language="de"))
    recipe = resolved.recipe
    assert recipe.data == DataOptions(path="x.jsonl", packing=True, limit=7)
    assert recipe.format == Loud(volume=3, speakers=["a", "b"], language="de")
    assert recipe.format_options == {}
    origins = {path: str(origin) for path, origin in resolved.origins.items() if path.startswith("data.")}
    assert origins.keys() == {"data.name", *(f"data.{key}" for key in (*DataOptions.model_fields, *Loud.model_fields))}
    assert (origins["data.packing"], origins["data.volume"]) == (f"file {file}:1", f"file {file}:1")
    assert (origins["data.limit"], origins["data.language"]) == ("option --data.limit", "option --data.language")
    assert (origins["data.mix"], origins["data.name"]) == ("default", f"file {file}:1")


def test_the_written_section_has_name_plain_options_and_the_formats_own(plugins: Plugins, write: Write):
    text = dump(resolve(plugins, None, as_options(data="loud", data__path="x", data__volume="2")).recipe)
    section = yaml.safe_load(text)["data"]
    assert list(section) == ["name", *DataOptions.model_fields, "volume", "speakers", "language"]
    assert (section["name"], section["volume"]) == ("loud", 2)
    assert dump(resolve(plugins, write(text)).recipe) == text


def test_options_for_a_format_that_is_to_be_recognised(plugins: Plugins, write: Write):
    resolved = resolve(plugins, None, as_options(data__path="x", data__volume="2", data__speakers="a,b"))
    assert resolved.recipe.format is None
    assert resolved.recipe.format_options == {"volume": 2, "speakers": ["a", "b"]}  # as the only one with both reads it
    assert str(resolved.origins["data.speakers"]) == "option --data.speakers"
    text = dump(resolved.recipe)
    section = yaml.safe_load(text)["data"]
    assert (section["name"], section["volume"], section["speakers"]) == (None, 2, ["a", "b"])
    again = resolve(plugins, write(text)).recipe
    assert dump(again) == text
    assert again.format_options == resolved.recipe.format_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"volum": "2"}, "--data.volum: unknown option; did you mean data.volume?"),
        ({"packin": "2"}, "--data.packin: unknown option; did you mean data.packing?"),
        ({"dropout": "2"}, "--data.dropout: unknown option; tuner.dropout is an option of tuner lora"),
        ({"learning_rate": "2"}, "--data.learning_rate: unknown option; did you mean training.learning_rate?"),
        ({"volume": "2"}, "--data.volume: means other things to loud and written; name one of them with --data NAME"),
        ({"pages": "few"}, "--data.pages: expected a whole number, got 'few'"),
        ({"volume": "2", "pages": "1"}, None),
        ({"language": "de"}, None),
        ({"speakers": "a", "pages": "1"}, "--data.speakers, --data.pages: no format has all of these options"),
    ],
    ids=str,
)
def test_what_is_given_to_no_format(plugins: Plugins, given: dict[str, str], expected: str | None):
    values = {f"data__{key}": value for key, value in given.items()}
    if expected is None:
        resolve(plugins, None, as_options(data__path="x", **values))
        return
    assert expected in problems(plugins, data__path="x", **values)


def test_a_broken_format_harms_no_other(plugins: Plugins):
    recipe = resolve(plugins, None, as_options(data__path="x", data__speakers="a")).recipe
    assert recipe.format_options == {"speakers": ["a"]}
    with pytest.raises(PluginError, match="data broken"):
        resolve(plugins, None, as_options(data="broken", data__speakers="a"))


def test_options_of_a_format_that_is_not_the_one_named(plugins: Plugins):
    assert "--data.pages: unknown option; data.pages is an option of data written, not chosen" in problems(
        plugins, data="spoken", data__pages="1"
    )
    # without a place to read from, the format is that of the embedded tasks
    assert "data.pages is an option of data written, not chosen" in problems(plugins, data__pages="1")


@pytest.mark.parametrize("name", ["null", "none", "~"])
def test_no_name_stands_for_recognising(plugins: Plugins, write: Write, name: str):
    file = write(f"data: {{name: {name}, path: x}}\n")
    assert resolve(plugins, file).recipe.format is None
    named = write("data: {name: loud, path: x}\n")
    assert resolve(plugins, named).recipe.format == Loud()
    assert resolve(plugins, named, as_options(data="none")).recipe.format is None
    embedded = resolve(plugins, write(f"data: {name}\n")).recipe  # nothing to recognise one by
    assert embedded.format is not None
    assert embedded.format.name == "demo"


def test_components_may_prefer_plain_options_and_those_of_the_format(plugins: Plugins):
    resolved = resolve(plugins, None, as_options(tuner="packs", data="loud", data__path="x"))
    assert resolved.recipe.data.packing
    assert resolved.recipe.format == Loud(language="de")
    assert str(resolved.origins["data.packing"]) == "plugin tuner packs"
    mine = resolve(plugins, None, as_options(tuner="packs", data__path="x", data__packing="false")).recipe
    assert (mine.data.packing, mine.format_options) == (False, {})


@pytest.mark.parametrize("given", [{"data": "loud"}, {"data__path": "x"}], ids=str)
def test_a_command_that_reads_alone(plugins: Plugins, given: dict[str, str]):
    scope = Scope("eval", ("data",), {"data": Reading})
    parts = resolve_parts(plugins, scope, as_options(**given, data__limit="3", data__language="de"))
    assert parts["data"] == Reading(path=given.get("data__path"), limit=3)
    assert (parts["format"], parts["format_options"]) == (
        (Loud(language="de"), {}) if "data" in given else (None, {"language": "de"})
    )
    for key in DataOptions.model_fields.keys() - Reading.model_fields.keys():
        with pytest.raises(RecipeError) as caught:
            resolve_parts(plugins, scope, as_options(**given, **{f"data__{key}": "1"}))
        assert str(caught.value) == f"--data.{key}: unknown option; data.{key} is one of training runs (lmflow run)"


def test_a_format_cannot_have_an_option_of_the_section():
    assert set(DataFormat.reserved) == set(DataOptions.model_fields)

    class Limited(Spoken):
        """A format of its own limit."""

        name = "limited"
        limit: int = Field(1, description="How many.")

    with pytest.raises(PluginError, match="data limited: option limit is one that the section has for all formats"):
        check_component("data", DataFormat, Limited, SLOTS)


def test_the_schema_of_the_section(plugins: Plugins):
    named, *mappings = schema(plugins)["properties"]["data"]["anyOf"]
    assert named["type"] == ["string", "null"]
    [loud] = [each for each in mappings if each["properties"]["name"]["enum"] == ["loud", None]]
    assert loud["properties"].keys() == {"name", *DataOptions.model_fields, *Loud.model_fields}
    assert loud["additionalProperties"] is False
    section = yaml.safe_load(dump(resolve(plugins, None, as_options(data="loud")).recipe))["data"]
    assert section.keys() == loud["properties"].keys()


def test_nothing_is_called_auto(plugins: Plugins):
    assert "auto" not in plugins.offers("data")
    assert "no data is called auto" in problems(load_plugins(), data="auto", data__path="x")
