"""The conformance suite for listeners: what hears of every run fails in none, prints nothing, and changes nothing."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from lmflow.builtin.full import Full
from lmflow.components import Model
from lmflow.errors import PluginError
from lmflow.plugins import EVENTS, Plugins
from lmflow.plugins.discovery import check_arguments
from lmflow.run.run import run
from lmflow.testing.comparing import some
from lmflow.testing.imports import heavy_libraries
from lmflow.testing.runs import RECORDS, Bench, plugins_with, supply
from lmflow.testing.tracker import SETTINGS, Recorder

BENCH: pytest.StashKey[HeardBench] = pytest.StashKey()
IMPORTED = "import importlib, sys; importlib.import_module(sys.argv[1])"
"""Imports a module."""
FAILED: Mapping[str, Any] = {"status": "failed", "metrics": {}}
"""What `lmflow_run_finished` brings of a run that failed before anything was measured."""
WITHOUT_LOSS: Mapping[str, Any] = {"step": 3, "metrics": {"step": 3, "iteration": 1, "reward": None}}
"""An aligner's line, which has no loss, and a figure that could not be had."""


class ListenerSuite:
    """An examination of what listens to every run; inherit from it in a class whose name begins with Test.

        from lmflow.testing import ListenerSuite

        class TestMyListener(ListenerSuite):
            @pytest.fixture
            def listener(self):
                return my_plugin.plugin

    Each test is one requirement, and its docstring says which. A listener is the module (or object) that the entry
    point names. A small run is carried out with it and without, and the events of the run are told again by themselves.
    """

    @pytest.fixture
    def listener(self) -> Any:
        """The module or object that listens; every suite supplies its own."""
        supply(self, "listener")

    @pytest.fixture
    def bench(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> HeardBench:
        """Where runs are carried out, and the working directory; one for all tests, so that they share the runs."""
        stash = request.node.getparent(pytest.Class).stash
        if BENCH not in stash:
            stash[BENCH] = make_bench(tmp_path_factory.mktemp("bench"))
        found: HeardBench = stash[BENCH]
        monkeypatch.chdir(found.here)
        return found

    # What it hears

    def test_it_listens(self, listener: Any) -> None:
        """It has at least one event, and each function called as one is marked `@hookimpl`."""
        named = [event for event in EVENTS if hasattr(listener, event)]
        unmarked = [event for event in named if not hasattr(getattr(listener, event), "lmflow_impl")]
        assert named, f"expected a function that is called as one of {', '.join(EVENTS)}; found none"
        assert not unmarked, f"expected {', '.join(unmarked)} to be marked @hookimpl; it is not, so nothing is heard"

    def test_it_asks_for_what_it_is_given(self, listener: Any) -> None:
        """No event has an argument that the hook of that name lacks: the plugin would be left out."""
        try:
            check_arguments(listener)
        except PluginError as error:
            pytest.fail(f"expected arguments of lmflow.hookspecs; found: {error}", pytrace=False)

    def test_it_fails_in_no_run(self, listener: Any, bench: HeardBench) -> None:
        """It raises at no event of a run, whatever its end: one that raises is told no more until the run ends."""
        for event, values in [*bench.events, *bench.unusual_events()]:
            try:
                tell(listener, event, values)
            except Exception as error:
                told = {name: value for name, value in values.items() if name != "recipe"}
                pytest.fail(
                    f"expected {event} to raise nothing; found {type(error).__name__}: {error}, told of {told}. Usual "
                    "cause: a figure is taken for granted that not every line or run has; use metrics.get().",
                    pytrace=False,
                )

    # What it leaves alone

    def test_the_run_is_what_it_is_without(self, listener: Any, bench: HeardBench) -> None:
        """Metrics and weights of a run are the same to the bit with it and without, and no note tells of it."""
        heard = bench.heard_by(listener)
        bench.check_same(heard, bench.alone(), "torch's modes or random numbers, changed in an event")
        notes = set(heard.record["notes"]) - set(bench.alone().record["notes"])
        assert not notes, f"expected no note about what listens; found {some(sorted(notes))}"

    def test_what_it_is_told_stays_as_it_is(self, listener: Any, bench: HeardBench) -> None:
        """It changes no mapping that an event brings; the run itself gives it copies that cannot be written to."""
        for event, values in bench.events:
            if "metrics" in values:
                given = dict(values["metrics"])
                tell(listener, event, {**values, "metrics": given})
                assert given == values["metrics"], f"expected {event} to leave the metrics alone; it changed them"

    def test_nothing_is_printed(self, listener: Any, bench: HeardBench) -> None:
        """No event writes to standard output, which belongs to what the user asked for."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            for event, values in bench.events:
                tell(listener, event, values)
        assert not printed.getvalue(), (
            f"expected nothing on standard output; found {printed.getvalue()[:200]!r}. Usual cause: print(); what the "
            "user is to read goes to standard error."
        )

    def test_no_file_appears_in_the_working_directory(self, listener: Any, bench: HeardBench) -> None:
        """What it writes lies below the run's directory, or where conduct.md says; never where the user is."""
        for event, values in bench.events:
            tell(listener, event, values)
        left = sorted(path.name for path in bench.here.iterdir())
        assert not left, (
            f"expected no file in the working directory; found {some(left)}. Usual cause: a relative path; build it "
            "from the `directory` that an event brings, or from $LMFLOW_CACHE."
        )

    def test_importing_it_loads_no_heavy_library(self, listener: Any) -> None:
        """Its module imports neither torch nor transformers nor datasets: every command imports it."""
        module = listener.__name__ if inspect.ismodule(listener) else type(listener).__module__
        loaded = heavy_libraries(IMPORTED, module, expected=f"{module} to be imported")
        assert not loaded, (
            f"expected {module} to load no heavy library; found {loaded}. Usual cause: an import at the top of the "
            "module; put it into the function that needs it, and types under TYPE_CHECKING."
        )


class HeardBench(Bench):
    """Small whole runs of SFT, with a listener and without, each carried out once."""

    def __init__(self, folder: Path, plugins: Plugins, model: Model) -> None:
        super().__init__(folder, plugins, Full(), model, RECORDS)
        self.here = folder / "here"
        """An empty directory to be in."""
        self.here.mkdir()
        self._events: list[tuple[str, dict[str, Any]]] = []

    def alone(self) -> Any:
        """The run without it; what happened in it is kept."""
        recorder = Recorder()
        with self.plugins.with_listeners({"recorder": recorder}):
            result = self.run("alone", SETTINGS)
        self._events = list(recorder.events) or self._events
        return result

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Every event of the run, with what it brought."""
        self.alone()
        return self._events

    def unusual_events(self) -> list[tuple[str, dict[str, Any]]]:
        """What other runs bring: a line without a loss, and an end before anything was measured."""
        [directory] = {values["directory"] for event, values in self.events if event == "lmflow_run_finished"}
        ended = {"directory": directory, **FAILED}
        return [
            ("lmflow_step_finished", dict(WITHOUT_LOSS)),
            ("lmflow_run_finished", ended),
            ("lmflow_run_finished", {**ended, "status": "interrupted"}),
        ]

    def heard_by(self, listener: Any) -> Any:
        """The run with it."""

        def carry_out(output: Path) -> Any:
            with self.plugins.with_listeners({"the listener": listener}):
                return run(self.recipe(SETTINGS), self.plugins, output=output, estimate=False)

        return self._once("heard", carry_out)


def make_bench(folder: Path) -> HeardBench:
    """A bench with a tiny model, and the core's plugins alone."""
    from lmflow.models.pretrained import Pretrained
    from lmflow.testing.tiny import tiny_model

    tiny_model(sharpness=6.0).save(folder / "model")
    return HeardBench(folder, plugins_with(companions=()), Pretrained(path=str(folder / "model")))


def tell(listener: Any, event: str, values: Mapping[str, Any]) -> None:
    """Call the listener's function for an event with those values that it asks for, and let it raise."""
    teller = Plugins()
    teller.manager.register(listener)
    getattr(teller.manager.hook, event)(**values)
