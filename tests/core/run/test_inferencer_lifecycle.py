"""Whoever uses an inferencer opens it once before and closes it once after, however the work ends."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmflow.cli import main
from lmflow.components import AlignContext, Inferencer, RunContext
from lmflow.errors import Interrupted, LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.run.run import run
from lmflow.testing.contexts import evaluate_context
from lmflow.testing.runs import RECORDS, SETTINGS, interrupt, plugins_with, resolve_settings, write_records

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What became of every inferencer: open, requests, close."""
    CALLS.clear()
    generate_each, stream = HuggingFace.generate_each, HuggingFace.stream

    def note(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *given: (CALLS.append(name), what(self, *given))[1]

    monkeypatch.setattr(HuggingFace, "open", note("open", lambda self, context: check(context)))
    monkeypatch.setattr(HuggingFace, "close", note("close", lambda self: None))
    monkeypatch.setattr(HuggingFace, "generate_each", note("request", generate_each))
    monkeypatch.setattr(HuggingFace, "stream", note("request", stream))


def check(context: RunContext) -> None:
    """Fail unless the context is whole."""
    assert context.model.end_ids
    assert context.plugins.classes("inferencer")
    assert context.log.processes.size == 1


def opened_and_closed() -> bool:
    """Whether it was opened once, asked only while open, and closed once."""
    return [CALLS[0], *{*CALLS[1:-1]} - {"request"}, CALLS[-1]] == ["open", "close"]


@pytest.fixture
def recipe(model_directory: Path, tmp_path: Path) -> Callable[..., Any]:
    """A small run's recipe."""
    data = write_records(tmp_path / "records.jsonl", RECORDS)
    settings = {**SETTINGS, "model.name": "pretrained", "model.path": str(model_directory), "data.path": str(data)}
    settings |= {"tuner.name": "full", "training.max_steps": 4, "training.batch_size": 3}
    return lambda **changes: resolve_settings(plugins_with(), {**settings, **changes})


def test_a_run(recipe: Callable[..., Any], tmp_path: Path):
    run(recipe(), plugins_with(), output=tmp_path / "run", estimate=False)
    assert opened_and_closed()


def test_a_run_that_fails(recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resolved = recipe()
    outcomes = [(LmflowError("no"), LmflowError), (ValueError("no"), ValueError), (KeyboardInterrupt(), Interrupted)]
    for number, (error, outcome) in enumerate(outcomes):
        CALLS.clear()

        def fail(self: Any, context: AlignContext, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(type(resolved.recipe.aligner), "align", fail)
        with pytest.raises(outcome):
            run(resolved, plugins_with(), output=tmp_path / f"run{number}", estimate=False)
        assert opened_and_closed()


def test_a_run_that_fails_before_there_is_a_model(recipe: Callable[..., Any], tmp_path: Path):
    with pytest.raises(LmflowError):
        run(recipe(**{"model.path": str(tmp_path)}), plugins_with(), output=tmp_path / "run", estimate=False)
    assert CALLS == []


def test_a_run_that_is_interrupted_and_resumed(recipe: Callable[..., Any], tmp_path: Path):
    interrupt(recipe(), plugins_with(), tmp_path / "run", after=2)
    assert opened_and_closed()
    CALLS.clear()
    run(recipe(), plugins_with(), output=tmp_path / "run", resume=True, estimate=False)
    assert opened_and_closed()


def test_an_inferencer_that_cannot_be_opened_is_closed(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    def fail(self: Inferencer, context: RunContext) -> None:
        CALLS.append("open")
        raise LmflowError("no engine")

    monkeypatch.setattr(HuggingFace, "open", fail)
    with pytest.raises(LmflowError, match="no engine"), HuggingFace().opened(evaluate_context(tiny_model, [])):
        pytest.fail("not reached")
    assert CALLS == ["open", "close"]


def command(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "questions.jsonl", RECORDS[:4])


SHORT = ("--sampling.max_new_tokens", 3, "--quiet")


def test_generate(model_directory: Path, records: Path, tmp_path: Path):
    where = tmp_path / "out.jsonl"
    assert not command("generate", "--model", model_directory, "--input", records, "--output", where, *SHORT)
    assert len(where.read_text().splitlines()) == 4
    assert "request" in CALLS
    assert opened_and_closed()
    CALLS.clear()
    assert not command("generate", "--model", model_directory, "--prompt", "the fox", *SHORT)
    assert opened_and_closed()
    CALLS.clear()
    too_long = "fox " * 300
    assert command("generate", "--model", model_directory, "--prompt", too_long, *SHORT)
    assert opened_and_closed()


def test_generate_interrupted(model_directory: Path, records: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def stopped(self: Inferencer, request: Any) -> Iterator[Any]:
        signal.raise_signal(signal.SIGINT)
        request.progress(1)
        yield from ()

    monkeypatch.setattr(HuggingFace, "generate_each", stopped)
    where = tmp_path / "out.jsonl"
    assert command("generate", "--model", model_directory, "--input", records, "--output", where, *SHORT) == 130
    assert CALLS == ["open", "close"]


def test_chat(model_directory: Path, monkeypatch: pytest.MonkeyPatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/exit\n"))
    command("chat", "--model", model_directory, *SHORT)
    assert CALLS == ["open", "request", "close"]


def test_eval(model_directory: Path, records: Path, capsys: pytest.CaptureFixture[str]):
    asked = ("eval", "--model", model_directory, "--data.path", records, "--evaluator", "accuracy")
    assert not command(*asked, "--evaluator.max_new_tokens", 3, "--json")
    assert json.loads(capsys.readouterr().out)["metrics"]
    assert "request" in CALLS
    assert opened_and_closed()
    CALLS.clear()
    assert command(*asked[:5], "--evaluator", "accuracy", "--evaluator.prompt_structure", "nothing", "--json")
    assert CALLS in ([], ["open", "close"])


def test_draft(model_directory: Path, records: Path, tmp_path: Path):
    asked = ("draft", "--model", model_directory, "--data.path", records, "--output", tmp_path / "draft", *SHORT)
    assert not command(*asked, "--training.max_steps", 1)
    assert "request" in CALLS
    assert opened_and_closed()
