"""Finding plugins: each in isolation, checked, and left out where the user says so."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import pytest

from lmflow.components import Tuner
from lmflow.errors import PluginError, RecipeError
from lmflow.plugins import SLOTS, load_plugins


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (("lmflow_tuners", "lmflow_tunres"), "there is no hook lmflow_tunres; did you mean lmflow_tuners?"),
        (
            ("lmflow_tuners()", "lmflow_tuners(recipe)"),
            "lmflow_tuners takes recipe, which it is not given; it is given nothi",
        ),
        (("return [Mine]", "raise RuntimeError('no')"), "RuntimeError: no"),
        (("return [Mine]", "return [int]"), "no subclass of Tuner"),
        (('name = "mine"', ""), "has no name"),
        (("def prepare", "def prepair"), "offers Mine, which lacks prepare"),
        ("LMFLOW_INTERFACE = 99", "written for interface 99, and this lmflow has 2; upgrade lmflow-core"),
        ("LMFLOW_INTERFACE = 0", "written for interface 0, and this lmflow has 2; upgrade the plugin"),
        ("LMFLOW_INTERFACE = (3, 5)", "written for interface 3 to 5"),
    ],
)
def test_a_broken_plugin_harms_only_itself(source: str | tuple[str, str], reason: str, install, good: str):
    """Its text, or what of the good one's is replaced by what."""
    spoilt = source if isinstance(source, str) else good.replace(*source)
    plugins = install(bad_one=spoilt, good_one=good)
    [broken] = plugins.broken
    assert broken.distribution == "bad-one"
    assert reason in broken.reason
    assert "Traceback" in broken.traceback
    assert plugins.find("tuner", "mine")
    assert [plugin.distribution for plugin in plugins.loaded] == ["good-one"]


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


LISTENING = """
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_step_finished(step, metrics, again=0): pass

@hookimpl
def lmflow_run_finished(status): pass
"""


def test_what_a_listener_is_not_given_is_named(install):
    [broken] = install(notes_one=LISTENING.replace("metrics", "metric")).broken
    assert broken.reason == "lmflow_step_finished takes metric, which it is not given; did you mean metrics?"


def test_a_listener_is_known_by_its_events(install):
    plugins = install(notes_one=LISTENING)
    assert plugins.broken == []
    assert plugins.heard_by("notes-one") == ["lmflow_step_finished", "lmflow_run_finished"]
    assert plugins.heard_by("another") == []


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


def test_a_conflict_is_refused_before_anything_is_loaded(install, point, monkeypatch):
    from lmflow.recipe.resolve import resolve
    from lmflow.recipe.settings import Origin, Setting

    monkeypatch.setattr("lmflow.plugins.discovery.entry_points", lambda **_: [*entry_points(group="lmflow"), *mine])
    mine: list[Any] = []
    install(refusing=REFUSING)
    mine.append(point("refusing", "refusing"))
    plugins = load_plugins()

    def chosen(aligner: str) -> list[Setting]:
        named = {"tuner": "picky", "aligner": aligner}
        return [Setting(slot, name, Origin("option", f"--{slot}")) for slot, name in named.items()]

    with pytest.raises(RecipeError, match="tuner picky does not go with aligner raft: it cannot sample"):
        resolve(plugins, None, chosen("raft"))
    assert resolve(plugins, None, chosen("sft")).recipe.tuner.name == "picky"


def test_disabled_distributions_are_not_even_imported(install, good: str, monkeypatch):
    monkeypatch.setenv("LMFLOW_DISABLE_PLUGINS", "Other, Bad.One")
    plugins = install(bad_one="raise RuntimeError('imported')", good_one=good)
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


def test_a_tracker_that_asks_for_what_it_is_not_given_breaks_its_plugin(install, tracker_source: str):
    [broken] = install(notes_one=tracker_source.replace("self, step", "self, stp")).broken
    assert "lmflow_step_finished takes stp, which it is not given; did you mean step?" in broken.reason


def test_a_tracker_that_listens_to_nothing_there_is_breaks_its_plugin(install, tracker_source: str):
    [broken] = install(notes_one=tracker_source.replace("step_finished", "stepp_finished")).broken
    assert "no event lmflow_stepp_finished, which Notes listens to; did you mean lmflow_step_finished?" in broken.reason


def test_a_chosen_component_names_the_package_it_lacks(install, good: str, point):
    needs = (
        'name = "mine"\n    requires = (Requirement("no_such_module", "good-one[extra]"), Requirement("json", "json"))'
    )
    needy = good.replace('name = "mine"', needs).replace("import Tuner", "import Requirement, Tuner")
    from lmflow.recipe.resolve import resolve
    from lmflow.recipe.settings import Origin, Setting

    install(good_one=needy)
    plugins = load_plugins([*entry_points(group="lmflow"), point("good_one", "good-one")])  # type: ignore[list-item]
    assert [each.module for each in plugins.find("tuner", "mine").missing()] == ["no_such_module"]
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, None, [Setting("tuner", "mine", Origin("option", "--tuner"))])
    assert caught.value.problems == [
        "tuner mine needs no_such_module, which is not installed: pip install good-one[extra]"
    ]
