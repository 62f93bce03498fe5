"""Runs that several processes carry out: when they are started, and for which directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmflow.distributed.outcome import Outcome
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.recipe import Recipe
from lmflow.recipe.resolve import resolve
from lmflow.run import workers
from lmflow.run.workers import needs_workers, run_in_workers
from lmflow.testing.runs import as_options


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the launcher is asked for; nothing is started."""
    given: list[Any] = []

    def launch(
        options: Any, recipe: str, place: Path, flags: list[str], *, show_all: bool, show_result: bool
    ) -> Outcome:
        assert show_result
        given.append((options.total, recipe, place, flags, show_all))
        return Outcome(3, ["why"])

    monkeypatch.setattr(workers, "launch", launch)
    return given


def recipe(plugins: Plugins, **options: str) -> Recipe:
    return resolve(plugins, options=as_options(**options)).recipe


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"launch__processes": "1"}, False),
        ({"launch__processes": "2"}, True),
        ({"launch__hosts": "2", "launch__address": "node0:29500"}, True),
    ],
    ids=str,
)
def test_several_processes_need_starting_but_for_those_that_were_started(
    options: dict[str, str], expected: bool, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
):
    assert needs_workers(recipe(plugins, **options)) is expected
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not needs_workers(recipe(plugins, **options))


def test_they_get_the_whole_recipe(plugins: Plugins, launched: list[Any], tmp_path: Path):
    """So that a file edited meanwhile, or a default that differs, cannot make two runs of one."""
    asked = recipe(plugins, launch__processes="2", tuner="lora", tuner__rank="3")
    directory, outcome = run_in_workers(asked, tmp_path / "o", ["--quiet"], show_all=True)
    assert (directory, outcome) == (tmp_path / "o", Outcome(3, ["why"]))
    [(total, text, place, flags, show_all)] = launched
    assert (total, place, flags, show_all) == (2, tmp_path / "o", ["--quiet"], True)
    (tmp_path / "recipe.yaml").write_text(text)
    assert resolve(plugins, tmp_path / "recipe.yaml").recipe == asked


def test_without_an_output_all_get_the_same_new_directory(
    plugins: Plugins, launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    directory, _ = run_in_workers(recipe(plugins, launch__processes="2"), None, [])
    assert directory.parent.name == "runs"
    [(_, _, place, _, show_all)] = launched
    assert (place, show_all) == (directory, False)
