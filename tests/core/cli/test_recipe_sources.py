"""A resolved recipe names the distribution of each component, and says so when that is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from lmflow.run.resume import comparable

MINE = """
from pydantic import Field
from lmflow.components import Tracker, Tuner
from lmflow.hookspecs import hookimpl

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    rank: int = Field(8, description="How much of nothing.")
    def prepare(self, model): return model

class Note(Tracker):
    "Keep nothing."
    name = "note"

@hookimpl
def lmflow_tuners(): return [Mine]

@hookimpl
def lmflow_trackers(): return [Note]
"""


@pytest.fixture
def recipe(lmflow, install_distribution, tmp_path) -> Path:
    """A resolved recipe of a run with the plugin's components."""
    install_distribution("acme-mine", MINE, version="1.2")
    shown = lmflow("recipe", "show", "--tuner", "mine", "--trackers", "note")
    assert shown.code == 0, shown.err
    (tmp_path / "recipe.yaml").write_text(shown.out)
    return tmp_path / "recipe.yaml"


@pytest.fixture
def uninstall(tmp_path):
    def remove(name: str) -> None:
        module = name.replace("-", "_")
        (tmp_path / "site" / f"{module}.py").unlink()
        for folder in (tmp_path / "site").glob(f"{module}-*"):
            shutil.rmtree(folder)

    return remove


def test_a_resolved_recipe_ends_with_the_distributions(recipe, lmflow):
    text = recipe.read_text()
    section = yaml.safe_load(text)["plugins"]
    assert section["tuner mine"] == "acme-mine 1.2"
    assert section["tracker note"] == "acme-mine 1.2"
    assert section["model demo"].startswith("lmflow-demo ")
    assert not any(source.startswith("lmflow-core") for source in section.values())
    assert text.index("\nplugins:\n") > text.index("\ntrackers:")
    assert lmflow("recipe", "show", recipe).out == text


def test_a_recipe_of_the_core_alone_has_no_such_section(lmflow, tmp_path):
    arguments = ["--model", "pretrained", "--model.path", "x", "--data.path", "y", "--reward", "none"]
    shown = lmflow("recipe", "show", *arguments)
    assert shown.code == 0
    assert "plugins" not in yaml.safe_load(shown.out)


def test_when_it_is_gone_the_error_says_what_to_install(recipe, lmflow, uninstall):
    uninstall("acme-mine")
    done = lmflow("recipe", "show", recipe)
    assert done.code == 2
    gone = "came from acme-mine 1.2, which is not installed; install it with: lmflow plugins install acme-mine"
    tuner, tracker = done.err.splitlines()
    assert tuner.endswith(f": tuner.name: tuner mine {gone}")
    assert tracker.endswith(f": trackers.name: tracker note {gone}")


def test_another_s_component_of_that_name_is_not_taken_for_it(recipe, lmflow, uninstall, install_distribution):
    uninstall("acme-mine")
    install_distribution("other-mine", MINE)
    done = lmflow("recipe", "show", recipe)
    assert done.code == 2
    assert "lmflow plugins install acme-mine. Others of that name: --tuner other-mine:mine" in done.err
    chosen = lmflow("recipe", "show", recipe, "--tuner", "mine", "--trackers", "note")
    assert chosen.code == 0
    assert "tuner mine: other-mine 1.0" in chosen.out


def test_a_second_of_that_name_changes_nothing(recipe, lmflow, install_distribution):
    install_distribution("other-mine", MINE)
    assert lmflow("recipe", "show", recipe).out == recipe.read_text()


def test_a_newer_version_is_written_anew_and_resumes(recipe, lmflow, uninstall, install_distribution):
    uninstall("acme-mine")
    install_distribution("acme-mine", MINE, version="2.0")
    again = lmflow("recipe", "show", recipe).out
    assert "tuner mine: acme-mine 2.0" in again
    assert again != recipe.read_text()
    assert comparable(again) == comparable(recipe.read_text())
    other = recipe.read_text().replace("tuner mine: acme-mine", "tuner mine: other-mine")
    assert comparable(other) != comparable(recipe.read_text())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no')", "came from acme-mine 1.2, which is broken (RuntimeError: no); see lmflow plugins"),
        (MINE.replace('"mine"', '"ours"'), "came from acme-mine 1.2, and acme-mine 2.0, which is installed, has none"),
    ],
)
def test_what_is_broken_or_has_changed_is_said(recipe, lmflow, uninstall, install_distribution, source, said):
    uninstall("acme-mine")
    install_distribution("acme-mine", source, version="2.0")
    assert f"tuner mine {said}" in lmflow("recipe", "show", recipe).err


def test_what_is_disabled_is_said(recipe, lmflow):
    done = lmflow("recipe", "show", recipe, "--disable-plugin", "acme-mine")
    assert "tuner mine came from acme-mine 1.2, which is disabled" in done.err


def test_a_line_about_what_is_no_longer_named_means_nothing(recipe, lmflow):
    text = recipe.read_text()
    start = text.index("tuner:\n")
    end = text.index("aligner:\n")
    recipe.write_text(text[:start] + "tuner: full\n" + text[end:])
    shown = lmflow("recipe", "show", recipe)
    assert shown.code == 0, shown.err
    assert "tuner mine" not in shown.out


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("plugins: acme", "plugins: expected options, one per line"),
        ("plugins: {tunner mine: acme 1}", "expected a slot and a component, as in `tuner lora: lmflow-lora 0.1.0`"),
        ("plugins: {tuner: acme 1}", "expected a slot and a component"),
        ("plugins: {tuner mine: 3}", "expected a distribution and its version, got 3"),
        ("plugins: {tuner mine: 'a; rm -r b'}", "expected a distribution and its version"),
    ],
)
def test_a_section_of_another_form_is_a_mistake(section, said, lmflow, tmp_path):
    (tmp_path / "recipe.yaml").write_text(section)
    done = lmflow("recipe", "show", tmp_path / "recipe.yaml")
    assert done.code == 2
    assert said in done.err
    assert f"{tmp_path}/recipe.yaml:1" in done.err


def test_it_is_no_option(lmflow):
    assert "--plugins.tuner: unknown section" in lmflow("recipe", "show", "--plugins.tuner", "acme").err


def test_distribution_and_name_together_are_explained_too(lmflow, install_distribution, uninstall, tmp_path):
    install_distribution("acme-mine", MINE, version="1.2")
    install_distribution("other-mine", MINE)
    shown = lmflow("recipe", "show", "--tuner", "acme-mine:mine")
    (tmp_path / "recipe.yaml").write_text(shown.out)
    assert lmflow("recipe", "show", tmp_path / "recipe.yaml").out == shown.out
    uninstall("acme-mine")
    assert (
        "tuner mine came from acme-mine 1.2, which is not installed"
        in lmflow("recipe", "show", tmp_path / "recipe.yaml").err
    )
