"""`lmflow run`: what the command makes of its words, and what it prints of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from lmflow.cli import run as command
from lmflow.errors import RecipeError, RunDirectoryError
from lmflow.plugins import load_plugins
from lmflow.recipe.settings import Origin, Setting
from lmflow.run.display import Silent

Lmflow = Callable[..., Any]


@pytest.fixture(scope="module")
def plugins() -> Any:
    return load_plugins()


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, dict[str, Any]]]:
    """What would have been run: the resolved recipe, and how."""
    found: list[tuple[Any, dict[str, Any]]] = []

    def run(resolved: Any, plugins: Any, *, display: Any, **given: Any) -> Any:
        print("a library says something")
        found.append((resolved.recipe, {**given, "silent": isinstance(display, Silent) and type(display) is Silent}))
        return SimpleNamespace(
            directory=tmp_path / "run",
            record={
                "status": "completed",
                "metrics": {},
                "wall_seconds": 1.0,
                "peak_memory_bytes": 9,
                "result": "model",
            },
        )

    monkeypatch.setattr(import_module("lmflow.run.run"), "run", run)
    return found


def call(plugins: Any, *words: str) -> None:
    """The command's function, called as Typer does."""
    made = command.make_command(plugins, words)
    assert made is not None
    function, rest = made
    app = typer.Typer(add_completion=False)
    app.command()(function)
    app(rest, standalone_mode=False)


NOTHING = {"output": None, "resume": False, "overwrite": False, "silent": False}


def test_without_a_word_the_embedded_model_is_tuned(plugins: Any, carried_out: list[Any]):
    call(plugins)
    [(recipe, flags)] = carried_out
    assert (recipe.model.name, recipe.tuner.name, recipe.aligner.name) == ("demo", "full", "sft")
    assert flags == NOTHING


def test_options_and_flags_are_told_apart(plugins: Any, carried_out: list[Any], tmp_path: Path):
    call(plugins, "--tuner", "lora", "--tuner.rank", "3", "--output", str(tmp_path / "o"), "--overwrite", "--quiet")
    [(recipe, flags)] = carried_out
    assert (recipe.tuner.name, recipe.tuner.rank) == ("lora", 3)
    assert flags == {**NOTHING, "output": tmp_path / "o", "overwrite": True, "silent": True}


def test_a_file_and_options_over_it(plugins: Any, carried_out: list[Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("tuner: {name: lora, rank: 3}\ntraining: {seed: 4}\n")
    call(plugins, str(tmp_path / "recipe.yaml"), "--tuner.rank", "5", "--json")
    [(recipe, flags)] = carried_out
    assert (recipe.tuner.rank, recipe.training.seed, flags["silent"]) == (5, 4, True)


def test_help_is_all_that_is_done(plugins: Any, carried_out: list[Any], capsys: pytest.CaptureFixture[str]):
    assert command.make_command(plugins, ["--tuner", "lora", "--help"]) is None
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: lmflow run [RECIPE.yaml] [OPTIONS]") or "lmflow run [RECIPE.yaml]" in shown
    for words, _ in command.HELP:
        assert words in shown
    assert "--tuner.rank" in shown
    assert carried_out == []


def test_all_mistakes_are_told_at_once(plugins: Any, carried_out: list[Any]):
    with pytest.raises(RecipeError) as caught:
        call(plugins, "--tunr", "lora", "--training.epocs", "2", "--aligner", "rft")
    text = str(caught.value)
    for expected in ("--tunr: unknown option; did you mean --tuner?", "training.epochs", "did you mean raft"):
        assert expected in text
    assert carried_out == []


# Resuming


def test_resume_needs_to_know_what(plugins: Any, carried_out: list[Any]):
    with pytest.raises(RunDirectoryError, match="--resume needs --output DIR"):
        call(plugins, "--resume")


def test_resume_takes_the_recipe_of_the_run(plugins: Any, carried_out: list[Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("tuner: {name: lora, rank: 3}\n")
    (tmp_path / "run.json").write_text("{}")
    call(plugins, "--resume", "--output", str(tmp_path))
    call(plugins, "--resume", "--output", str(tmp_path), "--launch.strategy", "fsdp")
    (first, flags), (second, _) = carried_out
    assert first.tuner.rank == second.tuner.rank == 3
    assert flags["resume"] is True
    assert second.launch.strategy == "fsdp"


def test_resume_with_options_is_compared_with_the_run_later(plugins: Any, carried_out: list[Any], tmp_path: Path):
    """Options that say what the run is are taken as they are: `check_same_recipe` then shows what differs."""
    (tmp_path / "recipe.yaml").write_text("tuner: {name: lora, rank: 3}\n")
    (tmp_path / "run.json").write_text("{}")
    call(plugins, "--resume", "--output", str(tmp_path), "--tuner", "full")
    assert carried_out[0][0].tuner.name == "full"


def test_nothing_to_resume(plugins: Any, carried_out: list[Any], tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="holds no run to resume"):
        call(plugins, "--resume", "--output", str(tmp_path))


@pytest.mark.parametrize(("path", "expected"), [("launch.processes", True), ("launching.x", False), ("tuner", False)])
def test_options_of_the_launch(path: str, expected: bool):
    assert command.of_launch(Setting(path, "1", Origin("option", f"--{path}"))) is expected


# What is shown


def test_json_is_all_that_stands_on_standard_output(
    plugins: Any, carried_out: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    call(plugins, "--json")
    assert json.loads(capsys.readouterr().out) == {
        "directory": str(tmp_path / "run"),
        "status": "completed",
        "metrics": {},
        "wall_seconds": 1.0,
        "peak_memory_bytes": 9,
        "result": "model",
    }


def test_quiet_prints_nothing(plugins: Any, carried_out: list[Any], capsys: pytest.CaptureFixture[str]):
    call(plugins, "--quiet")
    assert capsys.readouterr().out == ""


def test_otherwise_a_summary_is_shown(
    plugins: Any, carried_out: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    shown: list[Any] = []
    monkeypatch.setattr("lmflow.cli.display.show_summary", lambda record, place: shown.append((record, place)))
    call(plugins)
    assert shown == [
        (
            {"status": "completed", "metrics": {}, "wall_seconds": 1.0, "peak_memory_bytes": 9, "result": "model"},
            tmp_path / "run",
        )
    ]
