"""Trackers in a recipe: any number, each with its own options."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import Field

from lmflow.components import Requirement, Tracker
from lmflow.errors import RecipeError
from lmflow.hookspecs import hookimpl
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import resolve
from lmflow.recipe.schema import schema
from lmflow.recipe.settings import Origin, Setting


class Diary(Tracker):
    """Keep a diary."""

    name = "diary"
    title: str = Field("untitled", description="What stands on it.")
    pages: int = Field(10, description="How long it is.")
    locked: bool = Field(False, description="Whether others cannot read it.")


class Ledger(Tracker):
    """Keep a ledger."""

    name = "ledger"
    requires = (Requirement("no_such_module", "ledgers[all]"),)


class Books:
    """A plugin with both."""

    @staticmethod
    @hookimpl
    def lmflow_trackers() -> list[type[Tracker]]:
        return [Diary, Ledger]


@pytest.fixture
def plugins() -> Plugins:
    from importlib.metadata import entry_points

    point: Any = SimpleNamespace(name="books", dist=SimpleNamespace(name="books", version="1"), load=lambda: Books)
    return load_plugins([*entry_points(group="lmflow"), point])


def option(path: str, value: str) -> Setting:
    return Setting(path, value, Origin("option", f"--{path}"))


def problems(plugins: Plugins, *settings: Setting, file: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, file, settings)
    return caught.value.problems


def test_none_by_default(plugins):
    recipe = resolve(plugins).recipe
    assert recipe.trackers == []
    assert yaml.safe_load(dump(recipe))["trackers"] == {}


def test_options_name_them_and_set_their_options(plugins):
    resolved = resolve(plugins, None, [option("trackers", "diary"), option("trackers.diary.pages", "3")])
    assert resolved.recipe.trackers == [Diary(pages=3)]
    assert str(resolved.origins["trackers.diary.pages"]) == "option --trackers.diary.pages"


@pytest.mark.parametrize(
    "text", ["trackers: diary", "trackers: [diary]", "trackers: {diary: }", "trackers: {diary: {title: untitled}}"]
)
def test_a_file_names_them_in_any_of_four_ways(text: str, plugins, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(f"{text}\n")
    assert resolve(plugins, file).recipe.trackers == [Diary()]


def test_the_recipe_written_is_the_recipe_read(plugins, tmp_path):
    settings = [option("trackers", "books:diary"), option("trackers.books:diary.title", "of: a run")]
    written = dump(resolve(plugins, None, settings).recipe)
    assert yaml.safe_load(written)["trackers"] == {"books:diary": {"title": "of: a run", "pages": 10, "locked": False}}
    file = tmp_path / "r.yaml"
    file.write_text(written)
    assert dump(resolve(plugins, file).recipe) == written


def test_an_option_adds_to_what_the_file_says(plugins, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("trackers: {diary: {pages: 5, title: a}}\n")
    resolved = resolve(plugins, file, [option("trackers.diary.title", "b")])
    assert resolved.recipe.trackers == [Diary(title="b", pages=5)]


def test_none_on_the_command_line_switches_them_off(plugins, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("trackers: {diary: {pages: 3}}\n")
    assert resolve(plugins, file, [option("trackers", "none")]).recipe.trackers == []


def test_mistakes(plugins, tmp_path):
    assert problems(plugins, option("trackers", "dairy")) == [
        "--trackers: no tracker is called dairy; did you mean diary? Installed: "
        f"{', '.join(sorted(plugins.offers('tracker')))}."
    ]
    assert problems(plugins, option("trackers", "diary"), option("trackers.diary.pagse", "3")) == [
        "--trackers.diary.pagse: unknown option; did you mean trackers.diary.pages?"
    ]
    assert problems(plugins, option("trackers", "diary"), option("trackers.diary.pages", "few")) == [
        "--trackers.diary.pages: expected a whole number, got 'few'"
    ]
    assert problems(plugins, option("trackers.diary.pages", "3")) == [
        "--trackers.diary.pages: tracker diary is not chosen; name it with --trackers"
    ]
    assert problems(plugins, option("trackers", "diary,books:diary")) == [
        "--trackers: tracker books:diary is named twice"
    ]
    assert problems(plugins, option("trackers", "ledger")) == [
        "tracker ledger needs no_such_module, which is not installed: pip install ledgers[all]"
    ]
    file = tmp_path / "r.yaml"
    file.write_text("trackers: {diary: 3}\n")
    assert problems(plugins, file=file) == [f"{file}:1: trackers.diary: expected options, one per line"]
    file.write_text("trackers: 3\n")
    assert problems(plugins, file=file) == [
        f"{file}:1: trackers.name: expected names of trackers (tensorboard,mlflow), got 3"
    ]


def test_the_command_line_reads_and_explains_them(plugins):
    from lmflow.cli.help import recipe_help
    from lmflow.cli.options import scan
    from lmflow.cli.recipe import explain

    words = ["--trackers", "diary", "--trackers.diary.locked", "--trackers.diary.title=x", "--trackesr", "y"]
    scanned = scan(words, plugins, {})
    assert scanned.problems == ["--trackesr: unknown option; did you mean --trackers?"]
    resolved = resolve(plugins, None, scanned.settings)
    assert resolved.recipe.trackers == [Diary(title="x", locked=True)]
    assert "trackers.diary.title" in explain(resolved)
    shown = recipe_help("lmflow run", "About.", (), scanned, plugins)
    assert "tracker diary: Keep a diary." in shown
    assert "--trackers.diary.pages INTEGER" in shown


def test_the_schema_admits_names_and_options(plugins):
    [names, several, options] = schema(plugins)["properties"]["trackers"]["anyOf"]
    assert "diary" in names["description"]
    assert several["items"] == {"type": "string"}
    assert options["properties"]["diary"]["anyOf"][1]["properties"].keys() == {"title", "pages", "locked"}
