"""What the tests of the project itself share."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT, ROOT / "core", *sorted(ROOT.glob("plugins/*")), *sorted(ROOT.glob("lmflow_plugins_*"))]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of scripts/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name if folder != ROOT else "lmflow-all")
def folder(request: pytest.FixtureRequest) -> Path:
    """The folder of each distribution."""
    return request.param


@pytest.fixture
def pyproject(folder: Path) -> dict[str, Any]:
    """What the pyproject.toml of each distribution says."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
