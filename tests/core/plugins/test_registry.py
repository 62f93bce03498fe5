"""The plugins of a command: what they offer by name, and the events they are told of."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lmflow.errors import PluginError
from lmflow.plugins import load_plugins
from lmflow.plugins.registry import BrokenPlugin, count_broken, normal_name, same_name


def test_a_plugin_offers_a_component(install, good: str):
    plugins = install(good_one=good)
    assert plugins.find("tuner", "mine").name == "mine"
    assert plugins.find("tuner", "good-one:mine") is plugins.find("tuner", "mine")
    assert plugins.versions() == {"good-one": "1.2"}


def test_naming_what_a_broken_plugin_would_bring_says_so(install):
    plugins = install(bad_one="import no_such_module")
    with pytest.raises(PluginError, match=r"no tuner is called mine.*Plugin bad-one is broken.*no_such_module"):
        plugins.find("tuner", "mine")


def test_one_name_from_two_distributions(install, good: str):
    plugins = install(first_one=good, second_one=good)
    with pytest.raises(PluginError, match=r"offered by first-one and second-one; .*--tuner first-one:mine"):
        plugins.find("tuner", "mine")
    assert plugins.find("tuner", "first-one:mine") is not plugins.find("tuner", "second-one:mine")


def test_unknown_name_suggests_the_nearest(install, good: str):
    with pytest.raises(PluginError, match=r"no tuner is called mien; did you mean mine\? Installed: mine"):
        install(good_one=good).find("tuner", "mien")


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


def test_names_offered_twice_are_listed(install, good: str):
    assert install(first_one=good, second_one=good).conflicts() == [
        "tuner mine is offered by first-one and second-one; say which: --tuner first-one:mine or --tuner second-one:mine"
    ]
    assert install(good_one=good).conflicts() == []


def test_a_distribution_is_found_however_it_is_spelt(install, good: str):
    plugins = install(good_one=good)
    assert plugins.find("tuner", "Good.One:mine") is plugins.find("tuner", "mine")


def test_a_tracker_hears_only_the_runs_it_is_chosen_for(install, tracker_source: str):
    plugins = install(notes_one=tracker_source)
    tracker: Any = plugins.find("tracker", "notes")(title="mine")
    plugins.emit("lmflow_step_finished", step=1, metrics={})
    with plugins.with_trackers([tracker]):
        plugins.emit("lmflow_step_finished", step=2, metrics={"loss": 1.0})
    plugins.emit("lmflow_step_finished", step=3, metrics={})
    assert tracker._heard == [("mine", 2, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("metrics['loss'] = 0", "TypeError"),
        ("raise SystemExit(3)", "ExitCalled: it called sys.exit(3)"),
        ("raise ValueError('disk')", "ValueError: disk"),
    ],
)
def test_an_event_cannot_stop_or_change_a_run(does: str, said: str, install, tracker_source: str, capsys):
    plugins = install(notes_one=tracker_source.replace("self._heard", f"print('out'); {does}; self._heard"))
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


def test_a_name_without_a_component_is_none_to_lookup_and_an_error_to_find(install, good: str):
    plugins = install(good_one=good)
    assert plugins.lookup("tuner", "mine").name == "mine"
    assert plugins.lookup("tuner", "yours") is None
    assert plugins.lookup("tuner", "other-one:mine") is None
    assert plugins.lookup("aligner", "mine") is None, "a name belongs to its slot"
    with pytest.raises(PluginError, match="no aligner is called mine"):
        plugins.find("aligner", "mine")


def test_classes_leave_out_names_offered_twice(install, good: str):
    assert [each.name for each in install(good_one=good).classes("tuner")] == ["mine"]
    assert install(first_one=good, second_one=good).classes("tuner") == []


def test_every_distribution_is_listed_once_however_it_fares(install, good: str, monkeypatch):
    monkeypatch.setenv("LMFLOW_DISABLE_PLUGINS", "out-one")
    plugins = install(good_one=good, bad_one="import no_such_module", out_one=good)
    assert plugins.distributions() == ["good-one", "bad-one", "out-one"]
    assert plugins.versions() == {"good-one": "1.2"}
    assert [plugin.key for plugin in plugins.loaded] == ["good-one:main"]


def test_the_owner_of_a_component_is_named_with_its_version(install, good: str):
    plugins = install(good_one=good)
    mine = plugins.find("tuner", "mine")
    assert plugins.distribution_of(mine) == "good-one"
    assert plugins.describe_owner("tuner", mine) == "tuner mine (good-one 1.2)"

    class Stranger:
        name = "stranger"

    assert plugins.distribution_of(Stranger) == ""
    assert plugins.describe_owner("tuner", Stranger) == "tuner stranger"


COMMAND = """
from lmflow.components import Command
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_commands(): return [Command("greet", "say hello", lambda: None)]
"""


def test_a_command_of_two_plugins_is_refused_when_it_is_used(install):
    alone = install(one_one=COMMAND)
    assert alone.find_command("greet").name == "greet"
    assert alone.find_command("leave") is None
    both = install(one_one=COMMAND, two_one=COMMAND)
    with pytest.raises(PluginError, match=r"command greet is offered by one-one and two-one; .*--disable-plugin"):
        both.find_command("greet")


def test_of_many_broken_plugins_those_that_may_be_meant_are_told_whole(install):
    bad = {f"bad_{i}": f"import no_such_{i}" for i in range(7)}
    plugins = install(**bad)
    told = plugins.why_missing("bad-3:mine")
    assert "Plugin bad-3 is broken (ModuleNotFoundError: No module named 'no_such_3')" in told
    assert "bad-4" not in told
    assert plugins.why_missing("bad-3:mine", home="Bad_5").count("is broken") == 2
    assert (
        plugins.why_missing("mine")
        == " 7 plugins are broken (bad-0, bad-1, bad-2, bad-3, bad-4 and 2 more) and may bring it; see lmflow plugins."
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "1 plugin is broken (a0)"),
        (2, "2 plugins are broken (a0, a1)"),
        (6, "6 plugins are broken (a0, a1, a2, a3, a4 and 1 more)"),
    ],
)
def test_counting_broken_plugins(count: int, expected: str):
    broken = [BrokenPlugin(f"a{i}", "main", "1", "why", "") for i in range(count)]
    assert count_broken([*broken, broken[0]]) == expected, "one with two broken entry points counts once"


@pytest.mark.parametrize("spelling", ["good-one", "Good_One", "good.one", "GOOD--one"])
def test_distributions_are_compared_as_package_indexes_do(spelling: str):
    assert normal_name(spelling) == "good-one"
    assert same_name(spelling, "good_one")
    assert not same_name(spelling, "goodone")
