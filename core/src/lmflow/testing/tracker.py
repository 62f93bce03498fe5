"""The conformance suite for trackers: each point of a run recorded once, and the run as it is without a tracker."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import PrivateAttr

from lmflow.builtin.full import Full
from lmflow.components import Model, Tracker
from lmflow.hookspecs import hookimpl
from lmflow.plugins import EVENTS, Plugins
from lmflow.run.run import run
from lmflow.run_files import CHECKPOINTS
from lmflow.testing.comparing import some
from lmflow.testing.runs import (
    RECORDS,
    SMALL,
    TIME,
    Bench,
    interrupt,
    metrics_lines,
    plugins_with,
    stored_recipe,
    supply,
)
from lmflow.training.checkpoint import list_checkpoints

if TYPE_CHECKING:
    from lmflow.recipe.recipe import Recipe, ResolvedRecipe
    from lmflow.run.record import RunResult

SETTINGS: Mapping[str, Any] = {
    **SMALL,
    "aligner.name": "sft",
    "aligner.heldout_prompts": 0,
    "training.checkpoint_every": 2,
    "training.evaluate_every": 3,
}
"""Settings of the runs that are tracked: six steps, checkpoints and evaluations among them."""

Point = tuple[str, int, float]
"""A curve's name, the step, and the value there."""
ReadBack = Callable[[Path], Sequence[Point]]
BENCHES: pytest.StashKey[dict[str, TrackedBench]] = pytest.StashKey()


class TrackerSuite:
    """An examination of one tracker; inherit from it in a class whose name begins with Test.

        from lmflow.testing import TrackerSuite

        class TestMyTracker(TrackerSuite):
            loss_name = "train/loss"

            @pytest.fixture
            def tracker(self):
                return MyTracker()

            @pytest.fixture
            def read_back(self):
                return lambda run: points_in(run / "trackers" / "my-tracker")

    Each test is one requirement, and its docstring says which. Small whole runs are tracked, and what was recorded is
    read back by the function you supply.
    """

    loss_name: ClassVar[str] = "loss"
    """What the tracker calls the curve of the training loss."""

    @pytest.fixture
    def tracker(self) -> Tracker:
        """The tracker under examination; every suite supplies its own, with the same options each time."""
        supply(self, "tracker")

    @pytest.fixture
    def read_back(self) -> ReadBack:
        """Given a run's directory, the points recorded of it, in the order they were; every suite supplies its own."""
        supply(self, "read_back")

    @pytest.fixture
    def places(self) -> Sequence[Path]:
        """Where the tracker writes beside the run's directory, as its options say; nowhere by default."""
        return ()

    @pytest.fixture
    def plugins(self, tracker: Tracker) -> Plugins:
        """The installed plugins, with the tracker among them even where it is not installed."""
        return plugins_with(type(tracker))

    @pytest.fixture
    def bench(
        self,
        request: pytest.FixtureRequest,
        tracker: Tracker,
        plugins: Plugins,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> TrackedBench:
        """Where runs are carried out; one for all tests, so that they share the runs."""
        from lmflow.models.pretrained import Pretrained
        from lmflow.testing.tiny import tiny_model

        benches = request.node.getparent(pytest.Class).stash.setdefault(BENCHES, {})
        if type(tracker).__name__ not in benches:
            folder = tmp_path_factory.mktemp("bench")
            (folder / "here").mkdir()
            tiny_model(sharpness=6.0).save(folder / "model")
            model = Pretrained(path=str(folder / "model"))
            benches[type(tracker).__name__] = TrackedBench(folder, plugins, tracker, model)
        found: TrackedBench = benches[type(tracker).__name__]
        monkeypatch.chdir(found.folder / "here")
        return found

    # What it records

    def test_it_listens(self, tracker: Tracker) -> None:
        """At least one of its methods is an event marked `@hookimpl`."""
        events = [event for event in EVENTS if hasattr(getattr(type(tracker), event, None), "lmflow_impl")]
        assert events, (
            f"expected a method that is one of {', '.join(EVENTS)}, marked @hookimpl; found none, so nothing would be "
            "recorded and nobody told"
        )

    def test_every_step_is_recorded_once_and_in_order(self, bench: TrackedBench, read_back: ReadBack) -> None:
        """The curve `loss_name` holds the loss of every optimizer step of the run, once, in order."""
        directory = bench.tracked().directory
        expected = [(line["step"], line["loss"]) for line in metrics_lines(directory) if "loss" in line]
        points = list(read_back(directory))
        found = [(step, value) for name, step, value in points if name == self.loss_name]
        names = sorted({name for name, _, _ in points})
        assert [step for step, _ in found] == [step for step, _ in expected], (
            f"expected a point of {self.loss_name!r} at each of the steps {[step for step, _ in expected]}; found them "
            f"at {[step for step, _ in found]} (curves: {some(names, 8)}). Usual cause: the run's last points are not "
            "flushed, or the curve has another name (set the suite's `loss_name`)."
        )
        off = [one for one, other in zip(found, expected) if not math.isclose(one[1], other[1], rel_tol=1e-5)]
        assert not off, f"expected the losses of the run's metrics.jsonl, {expected}; found {found}"

    def test_a_resumed_run_is_recorded_as_a_whole_one(self, bench: TrackedBench, read_back: ReadBack) -> None:
        """A run that is interrupted, and resumed from an earlier checkpoint, leaves the points of one left alone."""
        whole, pieces = (
            [each for each in read_back(result.directory) if TIME not in each[0]]
            for result in (bench.tracked(), bench.tracked_in_pieces())
        )
        twice = sorted({place for name, step, _ in pieces if [p[:2] for p in pieces].count(place := (name, step)) > 1})
        assert not twice, (
            f"expected no point twice after a resume; found {some([str(each) for each in twice])}. Usual cause: steps "
            "taken again after the last checkpoint are recorded again; remember how far each curve has come."
        )
        apart = _different(pieces, whole)
        assert not apart, (
            f"expected the points of an uninterrupted run; found other or missing ones: {some(apart)}. Usual cause: a "
            "resumed run begins a record of its own, or what was written before the interruption is lost."
        )

    # What it leaves alone

    def test_the_run_is_what_it_is_without(self, bench: TrackedBench) -> None:
        """Metrics and weights of a run are the same to the bit with the tracker and without."""
        bench.check_same(bench.tracked(), bench.alone(), "torch's modes or random numbers, changed in an event")

    def test_a_failure_of_it_harms_no_run(self, bench: TrackedBench) -> None:
        """Where the tracker fails in the middle the run goes on, ends as it would, and says so once."""
        result = bench.failing()
        bench.check_same(result, bench.alone(), "something left half done when an event raised")
        told = [note for note in result.record["notes"] if bench.tracker.name in note]
        assert len(told) == 1, f"expected one note about the tracker that failed; found {result.record['notes']}"

    def test_files_stay_where_they_belong(self, bench: TrackedBench, places: Sequence[Path]) -> None:
        """Files appear in the run's directory and in `places` alone, not in the working directory."""
        bench.tracked()
        allowed = [bench.folder / "model", *bench.folder.glob("*.jsonl"), *bench.directories(), *places]
        others = [
            str(path.relative_to(bench.folder))
            for path in bench.seen
            if not any(path.resolve().is_relative_to(each.resolve()) for each in allowed)
        ]
        assert not others, (
            f"expected files in the run's directory and in the suite's `places` alone; found {some(others)}. Usual "
            "cause: a path relative to the working directory; build it from the `directory` the event brings."
        )

    def test_nothing_is_printed(self, bench: TrackedBench) -> None:
        """No event writes to standard output, which belongs to what the user asked for."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            bench.replay()
        assert not printed.getvalue(), (
            f"expected nothing on standard output; found {printed.getvalue()[:200]!r}. Usual cause: a library's "
            "greeting; send it to standard error or turn it off."
        )

    def test_options_survive_the_recipe_file(self, bench: TrackedBench) -> None:
        """The tracker's options, written to the run's recipe and read again, are the same options."""
        [again] = stored_recipe(bench.plugins, bench.tracked().directory).recipe.trackers
        found, written = again.model_dump(), bench.tracker.model_dump()
        assert found == written, f"expected the options {written} to come back from the recipe; found {found}"


class Recorder(Tracker):
    """Keeps every event of a run with what it brought."""

    name = "recorder"

    _events: list[tuple[str, dict[str, Any]]] = PrivateAttr(default_factory=list)

    @property
    def events(self) -> Sequence[tuple[str, dict[str, Any]]]:
        """What was heard, in order."""
        return self._events

    @hookimpl
    def lmflow_run_started(self, recipe: Recipe, directory: Path) -> None:
        """A run has begun."""
        self._events.append(("lmflow_run_started", {"recipe": recipe, "directory": directory}))

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step was taken."""
        self._events.append(("lmflow_step_finished", {"step": step, "metrics": metrics}))

    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        """A checkpoint was written."""
        self._events.append(("lmflow_checkpoint_saved", {"path": path}))

    @hookimpl
    def lmflow_run_finished(self, directory: Path, status: str, metrics: Mapping[str, Any]) -> None:
        """The run has ended."""
        known = {"directory": directory, "status": status, "metrics": metrics}
        self._events.append(("lmflow_run_finished", known))


class TrackedBench(Bench):
    """Small whole runs of SFT, with a tracker and without, each carried out once."""

    def __init__(self, folder: Path, plugins: Plugins, tracker: Tracker, model: Model) -> None:
        super().__init__(folder, plugins, Full(), model, RECORDS)
        self.tracker = tracker
        self.seen: list[Path] = []
        """Files there were after the first tracked run."""
        self._trackers: list[Tracker] = []
        self._recorder = Recorder()

    def recipe(self, changes: Mapping[str, Any]) -> ResolvedRecipe:
        """The recipe with the trackers of the run at hand."""
        resolved = super().recipe({**changes, **self._settings()})
        return replace(resolved, recipe=replace(resolved.recipe, trackers=list(self._trackers)))

    def tracked(self) -> RunResult:
        """The run with the tracker."""
        first = "tracked" not in self._done
        with self._tracking(fresh(self.tracker)), self.plugins.with_trackers([self._recorder] if first else []):
            result = self.run("tracked", SETTINGS)
        if first:
            self.seen = [path for path in self.folder.rglob("*") if path.is_file()]
        return result

    def tracked_in_pieces(self) -> RunResult:
        """The run with the tracker, interrupted; its last checkpoint is lost, so that steps are taken again."""

        def carry_out(output: Path) -> RunResult:
            interrupt(self.recipe(SETTINGS), self.plugins, output, after=6)
            shutil.rmtree(list_checkpoints(output / CHECKPOINTS)[-1])
            return run(stored_recipe(self.plugins, output), self.plugins, output=output, resume=True, estimate=False)

        with self._tracking(fresh(self.tracker)):
            return self._once("tracked-in-pieces", carry_out)

    def directories(self) -> list[Path]:
        """Those of all runs so far: in which order tests come is not the tracker's business."""
        return [self.folder / name for name in (*self._done, "replayed")]

    def alone(self) -> RunResult:
        """The run without it."""
        return self.run("alone", SETTINGS)

    def failing(self) -> RunResult:
        """The run with the tracker, which raises when it hears of the second step."""
        with self._tracking(fresh(self.tracker, failing(type(self.tracker)))):
            return self.run("failing", SETTINGS)

    def replay(self) -> None:
        """Tell a fresh tracker the events of the tracked run, with nothing between that catches what it prints."""
        copied = self.folder / "replayed"
        shutil.copytree(self.tracked().directory, copied)
        plugins = Plugins()
        plugins.manager.register(fresh(self.tracker))
        for event, values in self._recorder.events:
            given = {**values, "directory": copied} if "directory" in values else values
            getattr(plugins.manager.hook, event)(**given)

    def _settings(self) -> dict[str, Any]:
        """What chooses the tracker of the run at hand, as on the command line."""
        if not self._trackers:
            return {}
        options = self.tracker.model_dump(mode="json").items()
        return {"trackers": self.tracker.name} | {
            f"trackers.{self.tracker.name}.{key}": value for key, value in options
        }

    @contextmanager
    def _tracking(self, tracker: Tracker) -> Iterator[None]:
        self._trackers = [tracker]
        try:
            yield
        finally:
            self._trackers = []


def fresh(tracker: Tracker, kind: type[Tracker] | None = None) -> Tracker:
    """A tracker with the same options that has heard nothing yet."""
    return (kind or type(tracker)).model_validate(tracker.model_dump())


def failing(kind: type[Tracker]) -> type[Tracker]:
    """A tracker that does as `kind` does, and raises when it hears of the second step."""

    def finish(self: Any, step: int, metrics: Mapping[str, Any]) -> None:
        if step > 1:
            raise OSError("the record is out of reach")

    body = {"__module__": kind.__module__, "lmflow_step_finished": hookimpl(finish), "__doc__": kind.__doc__}
    made: type[Tracker] = type(kind.__name__, (kind,), body)
    return made


def _different(found: Sequence[Point], expected: Sequence[Point]) -> list[str]:
    """Places whose values are apart, or which only one of the two has."""
    one, other = ({(name, step): value for name, step, value in points} for points in (found, expected))
    return sorted(
        f"{name} at step {step}"
        for name, step in one.keys() | other.keys()
        if not math.isclose(one.get((name, step), math.nan), other.get((name, step), math.nan), rel_tol=1e-5)
    )
