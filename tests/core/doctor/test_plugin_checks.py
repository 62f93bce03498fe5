"""Sick plugins, each installed as a distribution; and sound ones, of which nothing is said."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import distributions

import pytest

from lmflow.components import Requirement
from lmflow.doctor.finding import Finding
from lmflow.doctor.package_checks import index
from lmflow.doctor.plugin_checks import check_optional_parts, check_plugins
from lmflow.plugins import DISABLE, disabled_by_environment, load_plugins

TUNER = """
from lmflow.components import Requirement, Tuner
from lmflow.hookspecs import hookimpl

LMFLOW_INTERFACE = 2

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
"""
COMMAND = """
from lmflow.components import Command
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_commands(): return [Command("greet", "Say hello.", lambda plugins, arguments: None)]
"""
LISTENER = """
from lmflow.hookspecs import hookimpl

@hookimpl
def lmflow_step_finished(step): pass
"""


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch):
    monkeypatch.delenv(DISABLE, raising=False)


def examine(commands: Sequence[str] = ()) -> list[Finding]:
    return list(check_plugins(load_plugins(), index(distributions()), commands, disabled_by_environment()))


def faults(commands: Sequence[str] = ()) -> list[Finding]:
    return [finding for finding in examine(commands) if finding.status != "ok"]


def test_the_installed_plugins_are_well():
    [finding] = examine(["run", "doctor"])
    assert finding.status == "ok"
    assert finding.message.startswith(f"{len(load_plugins().distributions())} distributions with plugins")


@pytest.mark.parametrize("source", [TUNER, COMMAND, LISTENER])
def test_a_sound_plugin_is_no_fault(source: str, install_distribution):
    install_distribution("acme-sound", source)
    assert faults() == []


def test_a_broken_plugin_names_the_package_it_lacks(install_distribution):
    install_distribution("acme-broken", "import acme_maths.deep\n", requires=["acme-maths>=2 ; python_version > '3'"])
    [finding] = faults()
    assert finding.status == "error"
    assert (
        "acme-broken 1.0 is broken and left out: ModuleNotFoundError: No module named 'acme_maths'" in finding.message
    )
    assert "does not declare" not in finding.message
    install, show = finding.remedy.splitlines()
    assert install.endswith("'acme-maths>=2'")
    assert show == "lmflow plugins show acme-broken"


def test_a_module_that_no_requirement_names_is_the_plugin_s_fault(install_distribution):
    install_distribution("acme-broken", "import acme_maths\n")
    [finding] = faults()
    assert "It does not declare acme_maths as a requirement" in finding.message
    assert finding.remedy.splitlines()[0].endswith(" acme_maths")


@pytest.mark.parametrize(
    ("source", "upgraded"),
    [
        ("def broken(:\n", "acme-broken"),
        ("LMFLOW_INTERFACE = 0\n", "acme-broken"),
        ("LMFLOW_INTERFACE = 99\n", "lmflow-core"),
    ],
)
def test_a_plugin_broken_otherwise_is_shown_and_upgraded(source: str, upgraded: str, install_distribution):
    install_distribution("acme-broken", source)
    [finding] = faults()
    show, upgrade = finding.remedy.splitlines()
    assert finding.status == "error"
    assert show == "lmflow plugins show acme-broken"
    assert upgrade.endswith(f"--upgrade {upgraded}")


def test_a_name_offered_twice_is_chosen_or_one_of_them_removed(install_distribution):
    install_distribution("acme-one", TUNER)
    install_distribution("acme-two", TUNER)
    [finding] = faults()
    assert finding.status == "error"
    assert (
        finding.message == "Tuner mine is offered by acme-one and acme-two. A recipe that says tuner mine is refused."
    )
    choose, uninstall = finding.remedy.splitlines()
    assert choose == "lmflow run --tuner acme-one:mine"
    assert "uninstall" in uninstall
    assert uninstall.endswith(" acme-two")


def test_replacing_one_of_the_core_s_components_stops_recipes_that_do_not_name_it(install_distribution):
    install_distribution("acme-full", TUNER.replace('"mine"', '"full"'))
    [finding] = faults()
    assert "the core's own" in finding.message
    assert finding.remedy.splitlines()[0] == "lmflow run --tuner lmflow-core:full"
    assert finding.remedy.splitlines()[1].endswith(" acme-full")


def test_a_command_offered_twice_is_refused(install_distribution):
    install_distribution("acme-one", COMMAND)
    install_distribution("acme-two", COMMAND)
    [finding] = faults(["run"])
    assert (finding.status, "Command greet is offered by acme-one and acme-two" in finding.message) == ("error", True)


def test_a_command_of_the_core_s_name_is_never_called(install_distribution):
    install_distribution("acme-one", COMMAND)
    [finding] = faults(["run", "greet"])
    assert finding.status == "warning"
    assert "never called: lmflow greet is the core's" in finding.message


def test_a_disabled_plugin_is_said_with_the_way_back(install_distribution, monkeypatch):
    install_distribution("acme-sound", TUNER)
    monkeypatch.setenv(DISABLE, "acme_sound")
    [finding] = faults()
    assert finding.status == "warning"
    assert finding.message.startswith("acme-sound is left out by LMFLOW_DISABLE_PLUGINS")
    assert finding.remedy == "unset LMFLOW_DISABLE_PLUGINS"


def test_disabling_what_is_not_installed_disables_nothing(monkeypatch):
    monkeypatch.setenv(DISABLE, "lmflow-rat")
    [finding] = faults()
    assert "names lmflow-rat, and no such plugin is installed" in finding.message


def test_a_forgotten_hookimpl_is_named(install_distribution):
    install_distribution("acme-idle", TUNER.replace("@hookimpl", ""))
    [finding] = faults()
    assert finding.status == "warning"
    assert "acme-idle 1.0 has a function lmflow_tuners without @hookimpl" in finding.message


def test_a_hook_forgotten_beside_one_that_is_marked_is_named_too(install_distribution):
    install_distribution("acme-half", TUNER + "\ndef lmflow_rewards(): return []\n")
    [finding] = faults()
    assert "a function lmflow_rewards without @hookimpl" in finding.message


@pytest.mark.parametrize("source", ["number = 1\n", TUNER.replace("return [Mine]", "return []")])
def test_a_plugin_that_does_nothing_is_suspicious(source: str, install_distribution):
    install_distribution("acme-idle", source)
    [finding] = faults()
    assert finding.status == "warning"
    assert finding.message == "acme-idle 1.0 loads, but offers nothing and listens to nothing."


def test_an_interface_that_is_not_declared_is_noted_without_blame(install_distribution):
    install_distribution("acme-silent", TUNER.replace("LMFLOW_INTERFACE = 2", ""))
    [finding] = examine()
    assert finding.status == "ok"
    assert "acme-silent" in finding.message.partition("No interface version is declared by")[2]


def test_a_component_that_lacks_a_package_says_what_installs_it(install_distribution):
    lacking = TUNER.replace('name = "mine"', 'name = "mine"; requires = (Requirement("acme_gpu", "\'acme[gpu]\'"),)')
    install_distribution("acme-part", lacking)
    lacks = [finding for finding in check_optional_parts(load_plugins()) if "tuner mine" in finding.message]
    [finding] = lacks
    assert finding.status == "warning"
    assert "tuner mine needs acme_gpu, which is not installed" in finding.message
    assert finding.remedy.endswith("install 'acme[gpu]'") or finding.remedy.endswith(" 'acme[gpu]'")


def test_a_component_that_has_its_packages_is_well(install_distribution, monkeypatch):
    having = TUNER.replace('name = "mine"', 'name = "mine"; requires = (Requirement("json", "json"),)')
    install_distribution("acme-part", having)
    plugins = load_plugins()
    monkeypatch.setattr(plugins, "_offers", {"tuner": {"mine": plugins.offers("tuner")["mine"]}})
    assert plugins.find("tuner", "mine").requires == (Requirement("json", "json"),)
    assert [finding.status for finding in check_optional_parts(plugins)] == ["ok"]
