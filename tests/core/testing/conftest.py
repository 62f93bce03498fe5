"""How the conformance suites are tested: each is run on components made for it, good and broken ones."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Report:
    """What became of one test of a suite: `outcome` is passed, failed (in a fixture too) or skipped."""

    outcome: str
    message: str


class Recorder:
    """A pytest plugin that keeps the outcome of every test by name, parameters included."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        if name not in self.reports or report.outcome != "passed":
            self.reports[name] = Report(report.outcome, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        assert report.passed, report.longreprtext


@pytest.fixture
def examine(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Report]]:
    """Run a suite on a component as its author would, and return {test name: Report}.

    `examine(TunerSuite, tuner=Broken())` inherits from the suite, with a fixture `tuner` that returns that instance.
    A keyword that names a fixture of the suite replaces it (a function is called for the value); any other is a class
    attribute: `examine(AlignerSuite, aligner=Raft(), metric="heldout_reward")`. `only="test_save"` leaves out tests
    whose name does not hold that text. It may be called several times in one test.
    """

    def run(suite: type, *, only: str = "", **given: Any) -> dict[str, Report]:
        examined = types.ModuleType("examined")
        examined.TestExamined = type("TestExamined", (suite,), _members(suite, given))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "examined", examined)
        folder = tmp_path_factory.mktemp("examined")
        file = folder / f"test_{folder.name}.py"  # a name of its own: imported modules are remembered by name
        file.write_text("from examined import TestExamined\n")
        recorder = Recorder()
        pytest.main(_arguments(file, only), plugins=[recorder])
        assert recorder.reports, f"no test of {suite.__name__} has {only!r} in its name"
        return recorder.reports

    return run


def _members(suite: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fixtures that return what was given, and class attributes, by name."""
    return {
        name: _fixture(name, value) if isinstance(getattr(suite, name, None), type(examine)) else value
        for name, value in given.items()
    }


def _fixture(name: str, value: Any) -> Any:
    make = value if isinstance(value, types.FunctionType) else lambda: value
    return pytest.fixture(name=name)(lambda self: make())


def _arguments(file: Path, only: str) -> list[str]:
    """A session of its own, without the project's settings and without a word on the terminal.

    Nor does it look for exceptions that nobody could raise: for that pytest collects garbage five times at its end, which
    takes seconds in a process with torch in it.
    """
    off = ["cacheprovider", "terminal", "faulthandler", "xdist", "capture", "logging", "unraisableexception"]
    return [
        str(file),
        *(argument for name in off for argument in ("-p", f"no:{name}")),
        *("-c", os.devnull, "--rootdir", str(file.parent), "--basetemp", str(file.parent / "tmp"), "--noconftest"),
        *("-k", only, "-W", "ignore"),
    ]
