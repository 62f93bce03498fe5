"""The suite of trackers passes a good one, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, PrivateAttr, field_serializer

from lmflow.components import Tracker
from lmflow.hookspecs import hookimpl
from lmflow.testing import TrackerSuite


class Lines(Tracker):
    """Appends each new point to a file in the run's directory: a good tracker, from which the broken ones differ."""

    name = "lines"
    digits: float = Field(9.25, description="An option that must survive the recipe.")

    _file: Path = PrivateAttr(Path())
    _reached: dict[str, int] = PrivateAttr(default_factory=dict)

    @hookimpl
    def lmflow_run_started(self, directory: Path) -> None:
        self._file = self.place(directory)
        self._reached = {name: step for name, step, _ in points_of(self._file)}

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        with self._file.open("a") as file:
            for name, value in metrics.items():
                if isinstance(value, float) and step > self._reached.get(name, 0):
                    file.write(json.dumps([name, step, value]) + "\n")

    def place(self, directory: Path) -> Path:
        return directory / "lines.jsonl"


def points_of(file: Path) -> list[Any]:
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def read(directory: Path) -> Sequence[Any]:
    return points_of(directory / "lines.jsonl")


class Deaf(Tracker):
    """Listens to nothing."""

    name = "deaf"

    def lmflow_step_finished(self, step: int) -> None:
        """Not marked."""


class LosesTheLast(Lines):
    @hookimpl
    def lmflow_step_finished(self, step, metrics):
        if step < 6:
            super().lmflow_step_finished(step, metrics)


class Repeats(Lines):
    """Does not look at how far it had come."""

    @hookimpl
    def lmflow_step_finished(self, step, metrics):
        self._reached = {}
        super().lmflow_step_finished(step, metrics)


class BeginsAnew(Lines):
    @hookimpl
    def lmflow_run_started(self, directory):
        self._file = self.place(directory)
        self._file.unlink(missing_ok=True)


class ChangesTheRecipe(Lines):
    """Changes what it is told of, and with it the run."""

    @hookimpl
    def lmflow_run_started(self, recipe, directory):
        super().lmflow_run_started(directory)
        recipe.schedule.__dict__["warmup"] = 1000


class WritesHere(Lines):
    @hookimpl
    def lmflow_run_started(self, directory):
        super().lmflow_run_started(directory)
        Path("started").write_text("")


class Prints(Lines):
    @hookimpl
    def lmflow_run_started(self, directory):
        super().lmflow_run_started(directory)
        print("tracking")


class LosesAnOption(Lines):
    @field_serializer("digits", when_used="json")
    def _round(self, digits: float) -> float:
        return round(digits)


ONCE, RESUMED = "test_every_step_is_recorded_once_and_in_order", "test_a_resumed_run_is_recorded_as_a_whole_one"


def test_a_good_tracker_passes_everything(examine: Callable[..., Any]):
    reports = examine(TrackerSuite, tracker=lambda: Lines(), read_back=lambda: read)
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


def test_which_runs_came_before_does_not_matter(examine: Callable[..., Any]):
    few = "a_failure_of_it or files_stay"  # a run without the tracker, then the first with it
    reports = examine(TrackerSuite, tracker=lambda: Lines(), read_back=lambda: read, only=few)
    assert [report.outcome for report in reports.values()] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (Deaf, "test_it_listens", "found none"),
        (LosesTheLast, ONCE, "found them at [1, 2, 3, 4, 5]"),
        (Repeats, RESUMED, "expected no point twice after a resume"),
        (BeginsAnew, RESUMED, "other or missing ones"),
        (ChangesTheRecipe, "test_the_run_is_what_it_is_without", "the first lines that differ"),
        (WritesHere, "test_files_stay_where_they_belong", "here/started"),
        (Prints, "test_nothing_is_printed", "found 'tracking"),
        (LosesAnOption, "test_options_survive_the_recipe_file", "'digits': 9.25"),
    ],
)
def test_a_broken_tracker_fails_its_check(broken: type[Tracker], check: str, said: str, examine: Callable[..., Any]):
    report = examine(TrackerSuite, tracker=lambda: broken(), read_back=lambda: read, only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_another_name_of_the_loss_is_to_be_said(examine: Callable[..., Any]):
    report = examine(TrackerSuite, tracker=lambda: Lines(), read_back=lambda: read, loss_name="train/loss", only=ONCE)
    assert report[ONCE].outcome == "failed"
    assert "set the suite's `loss_name`" in report[ONCE].message
