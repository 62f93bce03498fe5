"""Commands that plugins offer: found when called, listed by `lmflow plugins`, checked like components."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.cli.app import run_app
from lmflow.cli.plugins import as_dict, offered
from lmflow.errors import PluginError
from lmflow.plugins import load_plugins

SOURCE = """
from typing import Annotated
import typer
from lmflow.components import Command
from lmflow.hookspecs import hookimpl

def make(plugins, arguments):
    if "--help" in arguments:
        print("help of greet")
        return None

    def greet(name: str, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        print(name.upper() if loud else name, len(plugins.loaded))

    return greet, list(arguments)

@hookimpl
def lmflow_commands():
    return [Command("greet", "Say a name.", make)]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make modules the only plugins there are."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**sources: str) -> Any:
        points: list[Any] = []
        for name, source in sources.items():
            sys.modules.pop(name, None)
            (tmp_path / f"{name}.py").write_text(source)
            point = EntryPoint("main", name, "lmflow")
            points.append(SimpleNamespace(name="main", group="lmflow", load=point.load, dist=None))
            points[-1].dist = SimpleNamespace(name=name.replace("_", "-"), version="1.0")
        monkeypatch.setattr("lmflow.plugins.discovery.entry_points", lambda group: points)
        return load_plugins()

    return make


def test_a_command_is_called_by_its_name(install, capsys):
    install(greeting=SOURCE)
    assert run_app(["greet", "Ada", "--loud"]) == 0
    assert capsys.readouterr().out == "ADA 1\n"
    assert run_app(["greet", "--help"]) == 0
    assert capsys.readouterr().out == "help of greet\n"
    assert run_app(["greet"]) == 2
    assert "Missing argument" in capsys.readouterr().err


def test_it_is_listed_with_what_the_distribution_offers(install):
    plugins = install(greeting=SOURCE)
    assert offered(plugins, "greeting") == [("command", "greet", "Say a name.", None)]
    [described] = as_dict(plugins)["plugins"]
    [command] = described["components"]
    assert command == {"slot": "command", "name": "greet", "help": "Say a name.", "missing": [], "options": []}


def test_a_misspelt_command_gets_the_nearest_name_of_any(install):
    install(greeting=SOURCE)
    with pytest.raises(PluginError, match="no command is called gret; did you mean greet"):
        run_app(["gret"])
    with pytest.raises(PluginError, match="no command is called rnu; did you mean run"):
        run_app(["rnu"])


def test_a_broken_plugin_is_named_where_a_command_is_missing(install):
    install(greeting="import no_such_module")
    with pytest.raises(PluginError, match="Plugin greeting is broken"):
        run_app(["greet"])


def test_two_offers_of_a_name_are_an_error_when_called(install):
    install(one=SOURCE, two=SOURCE)
    with pytest.raises(PluginError, match="command greet is offered by one and two"):
        run_app(["greet", "Ada"])


def test_what_is_no_command_breaks_the_plugin(install):
    plugins = install(greeting=SOURCE.replace("[Command(", "[str("))
    assert "TypeError" in plugins.broken[0].reason
    plugins = install(greeting=SOURCE.replace('Command("greet", "Say a name.", make)', "make"))
    assert "no Command" in plugins.broken[0].reason
