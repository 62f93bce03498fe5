"""The launch section: what it takes, what it refuses, and where it stands in a recipe."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from lmflow.components import Aligner
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import resolve
from lmflow.recipe.sections import launch as options_module
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.settings import Origin, Setting
from lmflow.testing.runs import plugins_with


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def launch(**values: str) -> list[Setting]:
    """Options as the command line gives them: `processes="2"` is --launch.processes 2."""
    return [Setting(f"launch.{key}", each, Origin("option", f"--launch.{key}")) for key, each in values.items()]


def problems(plugins: Plugins, settings: list[Setting]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, None, settings)
    return caught.value.problems


def test_one_process_unless_more_are_asked_for(plugins: Plugins):
    assert resolve(plugins).recipe.launch == LaunchOptions()
    assert LaunchOptions().total == 1
    asked = resolve(plugins, None, launch(processes="4", hosts="2", host_rank="1", address="node7:29500"))
    assert asked.recipe.launch.total == 8
    assert str(asked.origins["launch.processes"]) == "option --launch.processes"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"processes": "0"}, "--launch.processes: must be greater than 0, got '0'"),
        ({"processes": "-2"}, "--launch.processes: must be greater than 0, got '-2'"),
        ({"processes": "two"}, "--launch.processes: expected a whole number, got 'two'"),
        ({"strategy": "ddb"}, "--launch.strategy: must be one of 'ddp', 'fsdp'"),
        ({"proceses": "2"}, "--launch.proceses: unknown option; did you mean launch.processes?"),
        ({"hosts": "2"}, "launch: 2 hosts need launch.address, the HOST:PORT of host 0"),
        ({"hosts": "2", "address": "here:1", "host_rank": "2"}, "launch: host_rank is 2, but the 2 hosts count from 0"),
        ({"address": "node7"}, "--launch.address: expected HOST:PORT, got 'node7'"),
        ({"address": "node7:99999"}, "--launch.address: expected HOST:PORT, got 'node7:99999'"),
        ({"timeout": "0"}, "--launch.timeout: must be greater than 0"),
    ],
)
def test_a_mistake_is_one_line(plugins: Plugins, given: dict[str, str], expected: str):
    [line] = problems(plugins, launch(**given))
    assert line.startswith(expected)


def test_addresses_of_every_kind():
    for address in ("node7:29500", "10.0.0.1:1", "[fe80::1]:29500"):
        assert LaunchOptions(address=address).address == address


def test_the_recipe_is_the_same_on_every_host(plugins: Plugins, tmp_path: Path):
    texts = [
        dump(resolve(plugins, None, launch(hosts="2", address="here:29500", host_rank=rank)).recipe)
        for rank in ("0", "1")
    ]
    assert texts[0] == texts[1]
    assert "host_rank" not in texts[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(texts[0])
    assert dump(resolve(plugins, file).recipe) == texts[0]


class Loner(Aligner):
    """Stands alone."""

    name = "loner"
    one_process: ClassVar[str | None] = "it keeps its ranking in memory"

    def align(self, *_: Any) -> None:
        """Do nothing."""


def test_a_component_that_works_alone_is_refused_before_any_work():
    plugins = plugins_with(Loner)
    loner = Setting("aligner", "loner", Origin("option", "--aligner"))
    assert resolve(plugins, None, [loner]).recipe.aligner.name == "loner"
    assert problems(plugins, [loner, *launch(processes="2")]) == [
        "--launch.processes: loner works in one process only: it keeps its ranking in memory"
    ]


def test_a_strategy_that_is_not_installed(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options_module, "find_spec", lambda name: None)
    [line] = problems(plugins, launch(processes="2", strategy="zero2"))
    assert line.startswith("--launch.strategy: zero2 needs DeepSpeed, which is not installed: pip install")
    assert resolve(plugins, None, launch(processes="2", strategy="fsdp")).recipe.launch.strategy == "fsdp"
