"""Plugins made of texts: modules, and entry points of made-up distributions that name them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.plugins import load_plugins

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


class Point:
    """An entry point as importlib.metadata gives it, of a made-up distribution."""

    def __init__(self, module: str, distribution: str) -> None:
        self.name, self.group = "main", "lmflow"
        self.dist = SimpleNamespace(name=distribution, version="1.2")
        self._inner = EntryPoint(self.name, module, self.group)

    def load(self) -> Any:
        return self._inner.load()


@pytest.fixture
def good() -> str:
    """A plugin that offers the tuner `mine`."""
    return GOOD


@pytest.fixture
def tracker_source() -> str:
    """A plugin that offers the tracker `notes`."""
    return TRACKER


@pytest.fixture
def point() -> type[Point]:
    """See `Point`."""
    return Point


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
