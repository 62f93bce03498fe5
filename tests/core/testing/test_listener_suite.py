"""The suite of listeners passes a good one, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.hookspecs import hookimpl
from lmflow.testing import ListenerSuite

MODULE = """
import sys
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_step_finished(step, metrics):
    sys.stderr.write(f"{step} {metrics.get('loss')}\\n")
"""


class Good:
    """Says on standard error what it hears."""

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        sys.stderr.write(f"{step} {metrics.get('loss')}\n")

    @hookimpl
    def lmflow_run_finished(self, directory: Path, status: str) -> None:
        sys.stderr.write(f"{directory} {status}\n")


class Deaf:
    pass


class Unmarked(Good):
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        sys.stderr.write(f"{path}\n")


class AsksForMore(Good):
    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path, weights: Any) -> None:
        sys.stderr.write(f"{path} {weights}\n")


class TakesTheLossForGranted(Good):
    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        sys.stderr.write(f"{step} {metrics['loss'] if 'eval_loss' not in metrics else ''}\n")


class TakesAnEndForGood(Good):
    @hookimpl
    def lmflow_run_finished(self, metrics: Mapping[str, Any]) -> None:
        sys.stderr.write(f"{metrics['eval_loss_after']}\n")


class Prints(Good):
    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        print(path)


class WritesBesideTheUser(Good):
    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        Path("saved.txt").write_text(str(path))


class EditsTheMetrics(Good):
    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: dict[str, Any]) -> None:
        if isinstance(metrics, dict):
            metrics.pop("loss", None)


class MovesWeights(Good):
    """Reaches past what it is told to the tensors of the run."""

    @hookimpl
    def lmflow_step_finished(self, step: int) -> None:
        import gc

        with torch.no_grad():
            for each in gc.get_objects():
                if isinstance(each, torch.nn.Parameter) and each.requires_grad:
                    each.mul_(1.001 + random.random() / 1000)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Writes a module that new processes can import too, and imports it."""

    def write(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(str(tmp_path))
        return importlib.import_module(name)

    return write


def test_a_good_listener_passes_everything(examine, importable):
    reports = examine(ListenerSuite, listener=importable("good_listener", MODULE))
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}
    assert len(reports) == 8


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (Deaf(), "test_it_listens", "found none"),
        (Unmarked(), "test_it_listens", "expected lmflow_checkpoint_saved to be marked @hookimpl"),
        (AsksForMore(), "test_it_asks_for_what_it_is_given", "lmflow_checkpoint_saved takes weights"),
        (TakesTheLossForGranted(), "test_it_fails_in_no_run", "KeyError: 'loss'"),
        (TakesAnEndForGood(), "test_it_fails_in_no_run", "'status': 'failed'"),
        (MovesWeights(), "test_the_run_is_what_it_is_without", "first lines that differ"),
        (EditsTheMetrics(), "test_what_it_is_told_stays_as_it_is", "it changed them"),
        (Prints(), "test_nothing_is_printed", "print()"),
        (WritesBesideTheUser(), "test_no_file_appears_in_the_working_directory", "found saved.txt"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_a_broken_listener_fails_its_check(broken: object, check: str, said: str, examine):
    report = examine(ListenerSuite, listener=broken, only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_a_failure_in_the_run_is_told(examine):
    class Raises(Good):
        @hookimpl
        def lmflow_checkpoint_saved(self, path: Path) -> None:
            raise OSError("out of reach")

    check = "test_the_run_is_what_it_is_without"
    report = examine(ListenerSuite, listener=Raises(), only=check)[check]
    assert report.outcome == "failed"
    assert "out of reach" in report.message


def test_a_module_that_loads_torch_fails(examine, importable):
    check = "test_importing_it_loads_no_heavy_library"
    heavy = importable("heavy_listener", f"import torch\n{MODULE}")
    report = examine(ListenerSuite, listener=heavy, only=check)[check]
    assert report.outcome == "failed"
    assert "found torch" in report.message
