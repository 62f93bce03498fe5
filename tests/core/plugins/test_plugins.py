"""Finding plugins: isolation, attribution, conflicts."""

import json
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.components import Tuner
from lmflow.errors import PluginError, RecipeError
from lmflow.plugins import SLOTS, load_plugins

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
        (GOOD.replace("lmflow_tuners", "lmflow_tunres"), "there is no hook lmflow_tunres; did you mean lmflow_tuners?"),
        (GOOD.replace("return [Mine]", "raise RuntimeError('no')"), "RuntimeError: no"),
        (GOOD.replace("return [Mine]", "return [int]"), "no subclass of Tuner"),
        (GOOD.replace('name = "mine"', ""), "has no name"),
        (GOOD.replace("def prepare", "def prepair"), "offers Mine, which lacks prepare"),
        ("LMFLOW_INTERFACE = 99", "written for interface 99, and this lmflow has 2; upgrade the lmflow-core"),
        ("LMFLOW_INTERFACE = 0", "written for interface 0, and this lmflow has 2; upgrade the plugin"),
        ("LMFLOW_INTERFACE = (3, 5)", "written for interface 3 to 5"),
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
    failures = [plugins.emit("lmflow_step_finished", step=step, metrics={}) for step in (1, 2, 3)]
    assert sys.modules["tracker_one"].heard == [1]
    assert sys.modules["tracker_two"].heard == [1, 2, 3]
    [failure] = failures[0]
    assert failure.startswith("plugin tracker-one: lmflow_step_finished raised ValueError: down")
    assert failures[1:] == [[], []]


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

    from lmflow.recipe.resolve import resolve
    from lmflow.recipe.settings import Origin, Setting

    monkeypatch.setattr("lmflow.plugins.discovery.entry_points", lambda **_: [*entry_points(group="lmflow"), *mine])
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


def test_disabled_distributions_are_not_even_imported(install, monkeypatch):
    monkeypatch.setenv("LMFLOW_DISABLE_PLUGINS", "Other, Bad.One")
    plugins = install(bad_one="raise RuntimeError('imported')", good_one=GOOD)
    assert [each.distribution for each in plugins.disabled] == ["bad-one"]
    assert plugins.broken == []
    with pytest.raises(PluginError, match=r"no tuner is called lost\. Installed: mine\. Plugin bad-one is disabled"):
        plugins.find("tuner", "lost")


def test_what_is_given_goes_before_the_environment(install, monkeypatch):
    monkeypatch.setenv("LMFLOW_DISABLE_PLUGINS", "lmflow-lora")
    assert load_plugins(disabled=()).disabled == []
    assert [each.distribution for each in load_plugins().disabled] == ["lmflow-lora"]


def test_the_core_cannot_be_disabled():
    with pytest.raises(PluginError, match="lmflow-core cannot be disabled"):
        load_plugins(disabled=["LMFLOW_core"])


def test_a_component_that_is_not_installed_is_known_by_its_distribution():
    plugins = load_plugins(())
    with pytest.raises(
        PluginError, match=r"no aligner is called raft\..* Install it with: lmflow plugins install lmflow-raft"
    ):
        plugins.find("aligner", "raft")
    with pytest.raises(PluginError, match="lmflow plugins install lmflow-longctx"):
        plugins.find("context", "yarn")
    with pytest.raises(PluginError) as caught:
        plugins.find("aligner", "somebodys")
    assert "install " not in str(caught.value)


def test_a_disabled_or_broken_distribution_is_not_to_be_installed_again():
    with pytest.raises(PluginError) as caught:
        load_plugins(disabled=["lmflow-raft"]).find("aligner", "raft")
    assert "Plugin lmflow-raft is disabled" in str(caught.value)
    assert "plugins install" not in str(caught.value)


def test_the_list_of_known_plugins_is_what_is_installed():
    plugins = load_plugins()
    offered: dict[str, dict[str, set[str]]] = {}
    for slot in SLOTS:
        for name, offers in plugins.offers(slot).items():
            offered.setdefault(offers[0].distribution, {}).setdefault(slot, set()).add(name)
    for command, distribution in plugins.commands:
        offered.setdefault(distribution, {}).setdefault("command", set()).add(command.name)
    offered.pop("lmflow-core")
    known = json.loads((files("lmflow") / "plugins" / "known_plugins.json").read_text())
    ours = {home: {slot: set(names) for slot, names in slots.items()} for home, slots in known.items()}
    assert {home: slots for home, slots in ours.items() if home in offered} == offered


def test_names_offered_twice_are_listed(install):
    assert install(first_one=GOOD, second_one=GOOD).conflicts() == [
        "tuner mine is offered by first-one and second-one; say which: --tuner first-one:mine or --tuner second-one:mine"
    ]
    assert install(good_one=GOOD).conflicts() == []


def test_a_distribution_is_found_however_it_is_spelt(install):
    plugins = install(good_one=GOOD)
    assert plugins.find("tuner", "Good.One:mine") is plugins.find("tuner", "mine")


TRACKER = """
from typing import Any
from pydantic import Field, PrivateAttr
from lmflow.components import Tracker
from lmflow.hookspecs import hookimpl

class Notes(Tracker):
    "Remember the steps."
    name = "notes"
    title: str = Field("untitled", description="What stands above them.")
    _heard: list[Any] = PrivateAttr(default_factory=list)

    @hookimpl
    def lmflow_step_finished(self, step, metrics):
        self._heard.append((self.title, step, dict(metrics)))

@hookimpl
def lmflow_trackers(): return [Notes]
"""


def test_a_tracker_hears_only_the_runs_it_is_chosen_for(install):
    plugins = install(notes_one=TRACKER)
    tracker: Any = plugins.find("tracker", "notes")(title="mine")
    plugins.emit("lmflow_step_finished", step=1, metrics={})
    with plugins.with_trackers([tracker]):
        plugins.emit("lmflow_step_finished", step=2, metrics={"loss": 1.0})
    plugins.emit("lmflow_step_finished", step=3, metrics={})
    assert tracker._heard == [("mine", 2, {"loss": 1.0})]


def test_a_tracker_that_listens_to_nothing_there_is_breaks_its_plugin(install):
    [broken] = install(notes_one=TRACKER.replace("step_finished", "stepp_finished")).broken
    assert "no event lmflow_stepp_finished, which Notes listens to; did you mean lmflow_step_finished?" in broken.reason


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("metrics['loss'] = 0", "TypeError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('disk')", "ValueError: disk"),
    ],
)
def test_an_event_cannot_stop_or_change_a_run(does: str, said: str, install, capsys):
    plugins = install(notes_one=TRACKER.replace("self._heard", f"print('out'); {does}; self._heard"))
    tracker: Any = plugins.find("tracker", "notes")()
    metrics = {"loss": 1.0}
    with plugins.with_trackers([tracker]):
        [failure] = plugins.emit("lmflow_step_finished", step=1, metrics=metrics)
        assert plugins.emit("lmflow_step_finished", step=2, metrics=metrics) == []
    assert failure.startswith(f"tracker notes: lmflow_step_finished raised {said}")
    assert metrics == {"loss": 1.0}
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "out\n")
    with plugins.with_trackers([tracker]):  # the next run hears of it again
        assert len(plugins.emit("lmflow_step_finished", step=1, metrics=metrics)) == 1


NEEDY = GOOD.replace(
    'name = "mine"',
    'name = "mine"\n    requires = (Requirement("no_such_module", "good-one[extra]"), Requirement("json", "json"))',
).replace("import Tuner", "import Requirement, Tuner")


def test_a_chosen_component_names_the_package_it_lacks(install, monkeypatch):
    from importlib.metadata import entry_points

    from lmflow.recipe.resolve import resolve
    from lmflow.recipe.settings import Origin, Setting

    install(good_one=NEEDY)
    plugins = load_plugins([*entry_points(group="lmflow"), Point("good_one", "good-one")])  # type: ignore[list-item]
    assert [each.module for each in plugins.find("tuner", "mine").missing()] == ["no_such_module"]
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, None, [Setting("tuner", "mine", Origin("option", "--tuner"))])
    assert caught.value.problems == [
        "tuner mine needs no_such_module, which is not installed: pip install good-one[extra]"
    ]
