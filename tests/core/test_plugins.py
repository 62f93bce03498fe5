"""Finding plugins: isolation, attribution, conflicts."""

import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.components import Tuner
from lmflow.errors import PluginError, RecipeError
from lmflow.plugins import PluginWarning, load_plugins

GOOD = """
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
"""


class Point:
    """An entry point as importlib.metadata gives it, of a made-up distribution."""

    def __init__(self, module: str, distribution: str) -> None:
        self.name, self.group = "main", "lmflow"
        self.dist = SimpleNamespace(name=distribution, version="1.2")
        self._inner = EntryPoint(self.name, module, self.group)

    def load(self) -> Any:
        return self._inner.load()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make distributions out of module sources, and load them as plugins."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**sources: str) -> Any:
        points: list[Any] = []
        for name, source in sources.items():
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").write_text(source)
            points.append(Point(name, name.replace("_", "-")))
        return load_plugins(points)

    return make


def test_a_plugin_offers_a_component(install):
    plugins = install(good_one=GOOD)
    assert plugins.find("tuner", "mine").name == "mine"
    assert plugins.find("tuner", "good-one:mine") is plugins.find("tuner", "mine")
    assert plugins.versions() == {"good-one": "1.2"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (GOOD.replace("lmflow_tuners", "lmflow_tunres"), "unknown hook 'lmflow_tunres'"),
        (GOOD.replace("return [Mine]", "raise RuntimeError('no')"), "RuntimeError: no"),
        (GOOD.replace("return [Mine]", "return [int]"), "no subclass of Tuner"),
        (GOOD.replace('name = "mine"', ""), "has no name"),
        ("LMFLOW_INTERFACE = 99", "written for interface 99, and this lmflow has 1"),
        ("LMFLOW_INTERFACE = (2, 5)", "written for interface 2 to 5"),
    ],
)
def test_a_broken_plugin_harms_only_itself(source: str, reason: str, install):
    plugins = install(bad_one=source, good_one=GOOD)
    [broken] = plugins.broken
    assert broken.distribution == "bad-one"
    assert reason in broken.reason
    assert "Traceback" in broken.traceback
    assert plugins.find("tuner", "mine")
    assert [plugin.distribution for plugin in plugins.loaded] == ["good-one"]


def test_naming_what_a_broken_plugin_would_bring_says_so(install):
    plugins = install(bad_one="import no_such_module")
    with pytest.raises(PluginError, match=r"no tuner is called mine.*Plugin bad-one is broken.*no_such_module"):
        plugins.find("tuner", "mine")


def test_one_name_from_two_distributions(install):
    plugins = install(first_one=GOOD, second_one=GOOD)
    with pytest.raises(PluginError, match=r"offered by first-one and second-one; .*--tuner first-one:mine"):
        plugins.find("tuner", "mine")
    assert plugins.find("tuner", "first-one:mine") is not plugins.find("tuner", "second-one:mine")


def test_unknown_name_suggests_the_nearest(install):
    with pytest.raises(PluginError, match=r"no tuner is called mien; did you mean mine\? Installed: mine"):
        install(good_one=GOOD).find("tuner", "mien")


EVENTS = """
from lmflow.hookspecs import hookimpl
heard = []

@hookimpl
def lmflow_step_finished(step): heard.append(step)
"""


def test_events_reach_every_plugin_and_a_failing_one_is_named_once(install):
    failing = EVENTS.replace("heard.append(step)", "heard.append(step); raise ValueError('down')")
    plugins = install(tracker_one=failing, tracker_two=EVENTS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (1, 2, 3):
            plugins.emit("lmflow_step_finished", step=step, metrics={})
    assert sys.modules["tracker_one"].heard == [1]
    assert sys.modules["tracker_two"].heard == [1, 2, 3]
    [warning] = caught
    assert issubclass(warning.category, PluginWarning)
    assert "tracker-one: lmflow_step_finished raised ValueError: down" in str(warning.message)


def test_the_installed_plugins_are_sound():
    plugins = load_plugins()
    assert plugins.broken == []
    offered: Iterable[Any] = [
        o.component
        for slot in ("model", "tuner", "aligner", "reward")
        for os in plugins.offers(slot).values()
        for o in os
    ]
    for component in offered:
        assert (component.__doc__ or "").strip(), component
        for key, info in component.model_fields.items():
            assert info.description, (component, key)
    assert issubclass(plugins.find("tuner", "lora"), Tuner)


REFUSING = """
from lmflow.components import Conflict, Tuner
from lmflow.hookspecs import hookimpl


class Picky(Tuner):
    '''Refuse RAFT.'''

    name = "picky"
    conflicts = (Conflict("aligner", "it cannot sample", ("raft",)),)

    def prepare(self, model):
        return model


@hookimpl
def lmflow_tuners():
    return [Picky]
"""


def test_a_conflict_is_refused_before_anything_is_loaded(install, monkeypatch):
    from importlib.metadata import entry_points

    from lmflow.recipe import Origin, Setting, resolve

    monkeypatch.setattr("lmflow.plugins.entry_points", lambda **_: [*entry_points(group="lmflow"), *mine])
    mine: list[Any] = []
    install(refusing=REFUSING)
    mine.append(Point("refusing", "refusing"))
    plugins = load_plugins()

    def chosen(aligner: str) -> list[Setting]:
        named = {"tuner": "picky", "aligner": aligner}
        return [Setting(slot, name, Origin("option", f"--{slot}")) for slot, name in named.items()]

    with pytest.raises(RecipeError, match="tuner picky does not go with aligner raft: it cannot sample"):
        resolve(plugins, None, chosen("raft"))
    assert resolve(plugins, None, chosen("sft")).recipe.tuner.name == "picky"
