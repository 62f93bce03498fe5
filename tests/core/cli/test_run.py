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
from lmflow.distributed.outcome import Outcome
from lmflow.errors import RecipeError, RunDirectoryError
from lmflow.plugins import load_plugins
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


def call(plugins: Any, *words: str) -> int | None:
    """The command's function, called as Typer does; the exit code, None where it returns."""
    made = command.make_command(plugins, words)
    assert made is not None
    function, rest = made
    app = typer.Typer(add_completion=False)
    app.command()(function)
    code: int | None = app(rest, standalone_mode=False)
    return code


WORKER = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
"""What a launcher leaves for the second of two processes."""
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


def test_resume_with_options_is_the_run_s_recipe_with_them(plugins: Any, carried_out: list[Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("tuner: {name: lora, rank: 3}\ntraining: {seed: 4}\n")
    (tmp_path / "run.json").write_text("{}")
    call(plugins, "--resume", "--output", str(tmp_path), "--training.micro_batch_size", "1", "--tuner", "lora")
    [(recipe, _)] = carried_out
    assert (recipe.tuner.rank, recipe.training.seed, recipe.training.micro_batch_size) == (3, 4, 1)


def test_nothing_to_resume(plugins: Any, carried_out: list[Any], tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="holds no run to resume"):
        call(plugins, "--resume", "--output", str(tmp_path))


# Several processes


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that would have been started: how many, for which run, with which flags, and whether all show."""
    given: list[Any] = []

    def launch(
        options: Any, recipe: str, place: Path, flags: list[str], *, show_all: bool, show_result: bool
    ) -> Outcome:
        assert show_result
        given.append((options.total, place, flags, show_all))
        return Outcome(0, [])

    monkeypatch.setattr(import_module("lmflow.run.workers"), "launch", launch)
    return given


def test_several_processes_are_started_with_the_flags_given(
    plugins: Any, carried_out: list[Any], launched: list[Any], tmp_path: Path
):
    words = ["--launch.processes", "2", "--output", str(tmp_path / "o"), "--overwrite", "--json"]
    assert call(plugins, *words) == 0
    assert launched == [(2, tmp_path / "o", ["--overwrite", "--json"], False)]
    assert carried_out == [], "and this process carries nothing out itself"


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", "--quiet", "--json"])
def test_each_flag_reaches_the_processes(flag: str, plugins: Any, launched: list[Any], tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("{}\n")
    (tmp_path / "run.json").write_text("{}")
    call(plugins, "--launch.processes", "2", "--output", str(tmp_path), flag)
    assert [flags for _, _, flags, _ in launched] == [[flag]]


def test_to_debug_every_process_shows_itself(plugins: Any, launched: list[Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["lmflow", "run", "--debug"])
    call(plugins, "--launch.processes", "2", "--output", "o")
    assert launched == [(2, Path("o"), ["--debug"], True)]


def test_a_worker_runs_itself_and_starts_no_other(
    plugins: Any, carried_out: list[Any], launched: list[Any], monkeypatch: pytest.MonkeyPatch
):
    for name, value in WORKER.items():
        monkeypatch.setenv(name, value)
    call(plugins, "--launch.processes", "2")
    assert len(carried_out) == 1
    assert launched == []


@pytest.mark.parametrize(("code", "lines"), [(0, []), (2, ["error: no tuner is called x"]), (130, ["Stopped."])])
def test_the_command_ends_as_its_workers_did(
    code: int, lines: list[str], plugins: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(import_module("lmflow.run.workers"), "launch", lambda *_, **__: Outcome(code, lines))
    assert call(plugins, "--launch.processes", "3", "--output", "o") == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()) == ("", lines)


def test_other_hosts_say_where_the_run_is_shown(plugins: Any, launched: list[Any], capsys: pytest.CaptureFixture[str]):
    words = ["--launch.hosts", "3", "--launch.host_rank", "2", "--launch.address", "node0:29500", "--output", "o"]
    call(plugins, *words)
    assert capsys.readouterr().err == "host 2 of 3: host 0 shows the run\n"
    call(plugins, *words, "--quiet")
    assert capsys.readouterr().err == ""
    assert [flags for _, _, flags, _ in launched] == [[], ["--quiet"]]


# What is shown


@pytest.mark.parametrize(("rank", "shows"), [("0", True), ("1", False)])
def test_of_several_processes_one_shows_the_run(
    rank: str, shows: bool, plugins: Any, carried_out: list[Any], monkeypatch: pytest.MonkeyPatch
):
    for name, value in {**WORKER, "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    shown: list[Path] = []
    monkeypatch.setattr("lmflow.cli.display.show_summary", lambda record, place: shown.append(place))
    call(plugins, "--launch.processes", "2")
    assert len(shown) == shows
    assert carried_out[0][1]["silent"] is not shows


def test_the_display_is_closed_when_a_run_fails(plugins: Any, monkeypatch: pytest.MonkeyPatch):
    closed: list[bool] = []

    class Display(Silent):
        def close(self) -> None:
            closed.append(True)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(import_module("lmflow.run.run"), "run", fail)
    monkeypatch.setattr(import_module("lmflow.run.terminal"), "make_run_display", lambda *, silent: Display())
    with pytest.raises(RuntimeError, match="broken"):
        call(plugins)
    assert closed == [True]


def test_json_is_all_that_stands_on_standard_output(
    plugins: Any, carried_out: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    call(plugins, "--json")
    printed = capsys.readouterr()
    assert "a library says something" in printed.err
    assert json.loads(printed.out) == {
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
