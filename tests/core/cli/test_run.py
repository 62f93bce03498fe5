"""`lmflow run`: what the command makes of its words, and what it prints of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from lmflow.cli import run as command
from lmflow.cli.options import scan
from lmflow.errors import RecipeError, RunDirectoryError
from lmflow.plugins import load_plugins
from lmflow.recipe.settings import Origin, Setting
from lmflow.run.display import Silent

Lmflow = Callable[..., Any]


@pytest.fixture(scope="module")
def plugins() -> Any:
    return load_plugins()


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What would have been run: the resolved recipe, and how."""
    found: list[tuple[Any, dict[str, Any]]] = []

    def carry_out(resolved: Any, plugins: Any, output: Path | None, worker: Any, **flags: bool) -> None:
        found.append((resolved.recipe, {"output": output, "worker": worker, **flags}))

    monkeypatch.setattr(command, "carry_out", carry_out)
    return found


def call(plugins: Any, *words: str) -> None:
    """The command's function, called as Typer does."""
    made = command.make_command(plugins, words)
    assert made is not None
    function, rest = made
    app = typer.Typer(add_completion=False)
    app.command()(function)
    app(rest, standalone_mode=False)


NOTHING = {"output": None, "worker": None, "resume": False, "overwrite": False, "quiet": False, "as_json": False}


def test_without_a_word_the_embedded_model_is_tuned(plugins: Any, carried_out: list[Any]):
    call(plugins)
    [(recipe, flags)] = carried_out
    assert (recipe.model.name, recipe.tuner.name, recipe.aligner.name) == ("demo", "full", "sft")
    assert flags == NOTHING


def test_options_and_flags_are_told_apart(plugins: Any, carried_out: list[Any], tmp_path: Path):
    call(plugins, "--tuner", "lora", "--tuner.rank", "3", "--output", str(tmp_path / "o"), "--overwrite", "--quiet")
    [(recipe, flags)] = carried_out
    assert (recipe.tuner.name, recipe.tuner.rank) == ("lora", 3)
    assert flags == {**NOTHING, "output": tmp_path / "o", "overwrite": True, "quiet": True}


def test_a_file_and_options_over_it(plugins: Any, carried_out: list[Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("tuner: {name: lora, rank: 3}\ntraining: {seed: 4}\n")
    call(plugins, str(tmp_path / "recipe.yaml"), "--tuner.rank", "5", "--json")
    [(recipe, flags)] = carried_out
    assert (recipe.tuner.rank, recipe.training.seed, flags["as_json"]) == (5, 4, True)


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


# Several processes


def test_several_processes_are_started_with_the_flags_given(
    plugins: Any, carried_out: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    started: list[Any] = []
    monkeypatch.setattr(command, "start_workers", lambda *given: started.append(given))
    call(plugins, "--launch.processes", "2", "--output", str(tmp_path / "o"), "--overwrite", "--json")
    [(recipe, output, flags)] = started
    assert (recipe.launch.total, output, flags) == (2, tmp_path / "o", ["--overwrite", "--json"])
    assert carried_out == []


def test_a_worker_runs_itself_and_starts_no_other(
    plugins: Any, carried_out: list[Any], monkeypatch: pytest.MonkeyPatch
):
    worker = SimpleNamespace(is_rank0=True)
    monkeypatch.setattr("lmflow.distributed.environment.this_worker", lambda: worker)
    call(plugins, "--launch.processes", "2")
    assert carried_out[0][1]["worker"] is worker


@pytest.mark.parametrize(("code", "lines"), [(0, []), (2, ["error: no tuner is called x"])])
def test_the_command_ends_as_its_workers_did(
    code: int, lines: list[str], plugins: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given: list[Any] = []

    def launch(options: Any, recipe: str, place: Path, words: list[str], *, show_all: bool) -> Any:
        given.append((options.total, place, words, show_all))
        return SimpleNamespace(code=code, lines=lines)

    monkeypatch.setattr("lmflow.distributed.launcher.launch", launch)
    monkeypatch.setattr("sys.argv", ["lmflow", "run"])
    scanned = scan(["--launch.processes", "3"], plugins, command.FIXED)
    recipe = command.resolve_scanned(scanned, plugins, None).recipe
    with pytest.raises(typer.Exit) as ended:
        command.start_workers(recipe, Path("out"), ["--quiet"])
    assert ended.value.exit_code == code
    assert given == [(3, Path("out"), ["--quiet"], False)]
    assert capsys.readouterr().err.splitlines() == lines


# What is shown


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A run that is over at once; how it was called."""
    called: dict[str, Any] = {}

    def run(resolved: Any, plugins: Any, **given: Any) -> Any:
        called.update(given)
        print("a library says something")
        return SimpleNamespace(directory=tmp_path / "run", record={"status": "completed", "metrics": {}})

    monkeypatch.setattr("lmflow.run.run.run", run)
    return called


def carry_out(plugins: Any, worker: Any = None, **flags: bool) -> None:
    named = {"resume": False, "overwrite": False, "quiet": False, "as_json": False, **flags}
    command.carry_out(None, plugins, None, worker, **named)  # type: ignore[arg-type]


def test_json_is_all_that_stands_on_standard_output(
    result: dict[str, Any], plugins: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    carry_out(plugins, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"directory": str(tmp_path / "run"), "status": "completed", "metrics": {}}
    assert "a library says something" in printed.err
    assert isinstance(result["display"], Silent)


def test_quiet_prints_nothing(result: dict[str, Any], plugins: Any, capsys: pytest.CaptureFixture[str]):
    carry_out(plugins, quiet=True, overwrite=True)
    assert capsys.readouterr().out == ""
    assert result["overwrite"] is True


def test_otherwise_a_summary_is_shown(
    result: dict[str, Any], plugins: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    shown: list[Any] = []
    monkeypatch.setattr("lmflow.cli.display.show_summary", lambda record, place: shown.append((record, place)))
    carry_out(plugins)
    assert shown == [({"status": "completed", "metrics": {}}, tmp_path / "run")]
    carry_out(plugins, worker=SimpleNamespace(is_rank0=True))
    assert len(shown) == 2
    carry_out(plugins, worker=SimpleNamespace(is_rank0=False), as_json=True)
    assert len(shown) == 2


def test_the_display_is_closed_when_a_run_fails(plugins: Any, monkeypatch: pytest.MonkeyPatch):
    closed: list[bool] = []

    class Display(Silent):
        def close(self) -> None:
            closed.append(True)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr("lmflow.run.run.run", fail)
    monkeypatch.setattr(command, "make_display", lambda *, silent: Display())
    with pytest.raises(RuntimeError, match="broken"):
        carry_out(plugins)
    assert closed == [True]
