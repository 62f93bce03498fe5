"""What suites load: the core, the plugin of the component under examination, and companions they name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest

from lmflow.builtin.full import Full
from lmflow.inference.hf import HuggingFace
from lmflow.testing import runs
from lmflow.testing.runs import plugins_with


class Mine(HuggingFace):
    """Not installed."""

    name = "mine"


class Neighbour(EntryPoint):
    """An installed plugin that would harm whoever loads it."""

    def load(self) -> Any:
        raise AssertionError("it was loaded")


@pytest.fixture(autouse=True)
def neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken plugin is installed beside those there are."""
    installed = [*entry_points(group="lmflow"), Neighbour("plugin", "some_neighbour.plugin", "lmflow")]
    monkeypatch.setattr(runs, "entry_points", lambda group: installed)


def test_a_component_that_is_not_installed_stands_beside_the_core_alone() -> None:
    plugins = plugins_with(Mine, companions=())
    assert set(plugins.distributions()) == {"lmflow-core", "in-process"}
    assert Mine in plugins.classes("inferencer")
    assert not plugins.broken


def test_a_component_of_the_core_needs_nothing_else() -> None:
    assert set(plugins_with(Full, companions=()).distributions()) == {"lmflow-core"}


def test_an_installed_component_brings_its_own_plugin() -> None:
    speculative = pytest.importorskip("lmflow_speculative.speculative").Speculative
    plugins = plugins_with(speculative, Mine, companions=())
    assert set(plugins.distributions()) == {"lmflow-core", "lmflow-speculative", "in-process"}


def test_companions_are_there_too() -> None:
    pytest.importorskip("lmflow_lora")
    assert "lora" in plugins_with(Full, companions=("lmflow-lora", "lmflow-not-installed")).offers("tuner")
    assert not plugins_with(Full, companions=("lmflow-lora",)).broken
