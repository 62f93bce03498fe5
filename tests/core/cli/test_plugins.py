"""`lmflow plugins`, and what every command says of plugins, with distributions installed for the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = "import no_such_module\n"
MINE = """
from pydantic import Field
from lmflow.components import Requirement, Tuner
from lmflow.hookspecs import hookimpl

LMFLOW_INTERFACE = (2, 3)

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    requires = (Requirement("no_such_module", "mine[extra]"),)
    rank: int = Field(8, description="How much of nothing.")
    names: list[str] = Field(default_factory=lambda: ["a"], description="What not to train.")
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
"""


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch):
    monkeypatch.delenv("LMFLOW_DISABLE_PLUGINS", raising=False)


def test_a_broken_plugin_is_one_line_and_changes_no_exit_code(lmflow, install_distribution):
    install_distribution("acme-broken", BROKEN)
    done = lmflow("recipe", "show")
    assert done.code == 0
    assert done.err == (
        "warning: plugin acme-broken is broken and left out (ModuleNotFoundError: No module named 'no_such_module'); "
        "see lmflow plugins show acme-broken\n"
    )
    assert lmflow("--help").err == ""


def test_the_list_names_what_is_broken_and_show_has_the_traceback(lmflow, install_distribution):
    install_distribution("acme-broken", BROKEN)
    listed = lmflow("plugins")
    assert listed.code == 0
    assert "acme-broken 1.0: broken: ModuleNotFoundError: No module named 'no_such_module'" in listed.out
    assert "Traceback" not in listed.out
    shown = lmflow("plugins", "show", "Acme_Broken")
    assert shown.code == 0
    assert "Traceback (most recent call last)" in shown.out
    assert "acme_broken.py" in shown.out


def test_a_run_that_names_what_a_broken_plugin_brings_stops_first(lmflow, install_distribution, tmp_path):
    install_distribution("acme-broken", BROKEN)
    done = lmflow("run", "--tuner", "acme", "--output", tmp_path / "run")
    assert done.code == 2
    assert "no tuner is called acme" in done.err
    assert "Plugin acme-broken is broken" in done.err
    assert not (tmp_path / "run").exists()


def test_json_has_distribution_version_interface_components_options_and_status(lmflow, install_distribution):
    install_distribution("acme-mine", MINE, version="2.1")
    install_distribution("acme-broken", BROKEN)
    done = lmflow("plugins", "--json", "--disable-plugin", "lmflow-lora")
    described = json.loads(done.out)
    by_name = {each["distribution"]: each for each in described["plugins"]}
    assert described["interface"] == 2
    assert by_name["acme-mine"] == {
        "distribution": "acme-mine",
        "entry_point": "main",
        "version": "2.1",
        "status": "loaded",
        "interface": [2, 3],
        "events": [],
        "components": [
            {
                "slot": "tuner",
                "name": "mine",
                "help": "Train nothing.",
                "missing": ["pip install mine[extra]"],
                "options": [
                    {
                        "name": "rank",
                        "type": "INTEGER",
                        "required": False,
                        "default": 8,
                        "help": "How much of nothing.",
                    },
                    {
                        "name": "names",
                        "type": "LIST",
                        "required": False,
                        "default": ["a"],
                        "help": "What not to train.",
                    },
                ],
            }
        ],
    }
    assert by_name["acme-broken"]["status"] == "broken"
    assert by_name["lmflow-lora"]["status"] == "disabled"
    assert by_name["lmflow-core"]["status"] == "loaded"


def test_show_lists_a_components_options_and_what_it_lacks(lmflow, install_distribution):
    install_distribution("acme-mine", MINE)
    for name in ("mine", "acme-mine", "acme-mine:mine"):
        shown = lmflow("plugins", "show", name)
        assert shown.code == 0
        assert "tuner mine (acme-mine): Train nothing." in shown.out
        assert "--tuner.rank  How much of nothing. [default 8]" in shown.out
        assert "needs no_such_module, which is not installed: pip install mine[extra]" in shown.out
    assert "interface 2 to 3" in lmflow("plugins", "show", "acme-mine").out
    wrong = lmflow("plugins", "show", "lmflow-lroa")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean lmflow-lora?" in wrong.err


def test_a_conflict_is_listed_and_an_error_when_chosen(lmflow, install_distribution):
    whole = MINE.replace('requires = (Requirement("no_such_module", "mine[extra]"),)', "")
    for distribution in ("acme-mine", "other-mine"):
        install_distribution(distribution, whole)
    said = "tuner mine is offered by acme-mine and other-mine; say which: --tuner acme-mine:mine or --tuner other-mine:mine"
    assert f"conflict: {said}" in lmflow("plugins").out
    assert lmflow("recipe", "show", "--tuner", "mine").err == f"error: --tuner: {said}\n"
    chosen = lmflow("recipe", "show", "--tuner", "other-mine:mine")
    assert chosen.code == 0
    assert "name: other-mine:mine" in chosen.out


def test_a_plugin_can_be_disabled_by_option_and_by_environment(lmflow, monkeypatch):
    expected = "no aligner is called raft. Installed: sft. Plugin lmflow-raft is disabled."
    for arguments in (["--disable-plugin", "lmflow-raft"], ["--disable-plugin=LMFLOW.RAFT"]):
        done = lmflow("recipe", "show", "--aligner", "raft", *arguments)
        assert (done.code, done.err) == (2, f"error: --aligner: {expected}\n")
    assert "LMFLOW_DISABLE_PLUGINS" not in os.environ
    monkeypatch.setenv("LMFLOW_DISABLE_PLUGINS", "lmflow-raft,lmflow-speculative")
    assert expected.partition(" Plugin")[0] in lmflow("recipe", "show", "--aligner", "raft").err
    assert "lmflow-raft 0.1.0: disabled" in lmflow("plugins").out
    assert "Plugin lmflow-speculative is disabled" in lmflow("draft").err
    assert lmflow("recipe", "show", "--tuner", "lora").code == 0


def test_disabling_what_is_not_there_is_said(lmflow):
    done = lmflow("recipe", "show", "--disable-plugin", "lmflow-rafft")
    assert done.code == 0
    assert done.err == "warning: there is no plugin lmflow-rafft to disable; did you mean lmflow-raft?\n"
    assert lmflow("recipe", "show", "--disable-plugin").err.startswith("error: --disable-plugin: needs the name")
    refused = lmflow("recipe", "show", "--disable-plugin", "lmflow-core")
    assert (refused.code, refused.err) == (2, "error: lmflow-core cannot be disabled: nothing works without it\n")


def test_commands_that_need_no_plugin_find_the_options_anywhere(lmflow):
    assert "--disable-plugin" in lmflow("--help").out
    assert lmflow("--disable-plugin", "lmflow-raft", "recipe", "show").code == 0


def test_a_process_that_is_started_keeps_the_plugin_disabled(tmp_path: Path):
    code = (
        "import sys\nfrom lmflow.cli import take_disabled, without_plugins\n"
        "with without_plugins(take_disabled(['run', '--disable-plugin', 'lmflow-raft'])[1]):\n"
        "    import subprocess\n"
        "    sys.exit(subprocess.run([sys.executable, '-m', 'lmflow', 'recipe', 'show', '--aligner', 'raft']).returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "Plugin lmflow-raft is disabled" in done.stderr


EIGHT = [f"acme-broken-{letter}" for letter in "abcdefgh"]
COUNTED = "8 plugins are broken (acme-broken-a, acme-broken-b, acme-broken-c, acme-broken-d, acme-broken-e and 3 more)"


@pytest.fixture
def eight_broken(install_distribution):
    for name in EIGHT:
        install_distribution(name, BROKEN)


def test_eight_broken_plugins_do_not_bury_the_error(lmflow, eight_broken):
    done = lmflow("recipe", "show", "--tuner", "lroa")
    assert done.code == 2
    warning, error = done.err.splitlines()
    assert warning == f"warning: {COUNTED} and left out; see lmflow plugins"
    assert error.startswith("error: --tuner: no tuner is called lroa; did you mean lora? Installed: ")
    assert error.endswith(f". {COUNTED} and may bring it; see lmflow plugins.")


def test_of_eight_broken_plugins_the_one_that_is_named_is_told_whole(lmflow, eight_broken):
    error = lmflow("recipe", "show", "--tuner", "acme-broken-c:mine").err.splitlines()[-1]
    assert "Plugin acme-broken-c is broken (ModuleNotFoundError: No module named 'no_such_module')" in error
    assert "acme-broken-a" not in error


def test_a_long_reason_is_cut_in_the_warning_alone(lmflow, install_distribution):
    install_distribution("acme-wordy", f"raise RuntimeError({'x' * 5000!r})")
    assert len(lmflow("recipe", "show").err) < 500
    assert "x" * 5000 in lmflow("plugins", "show", "acme-wordy").out


LISTENER = """
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_run_finished(status): pass
"""


def test_a_listener_says_what_it_listens_to(lmflow, install_distribution):
    install_distribution("acme-notes", LISTENER)
    assert "acme-notes 1.0\n  listens to lmflow_run_finished\n" in lmflow("plugins").out
    assert "listens to lmflow_run_finished, in every run\n" in lmflow("plugins", "show", "acme-notes").out
    [found] = [
        each for each in json.loads(lmflow("plugins", "--json").out)["plugins"] if each["distribution"] == "acme-notes"
    ]
    assert found["events"] == ["lmflow_run_finished"]


def test_a_long_name_stays_apart_from_its_help(lmflow):
    assert "text_to_scored_textlist An input" in lmflow("plugins").out
