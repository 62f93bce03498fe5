"""Distributions made up for a test, installed as really as Python knows, and an installer that installs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.util import cache_from_source
from pathlib import Path

import pytest


@pytest.fixture
def install_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Installs a distribution whose module is `source`, with an entry point for lmflow; returns where it lies."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str, source: str, *, version: str = "1.0", requires: Sequence[str] = ()) -> Path:
        module = name.replace("-", "_")
        sys.modules.pop(module, None)
        source_file = site / f"{module}.py"
        source_file.write_text(source)
        # Bytecode of another source counts as its own where both were written in one second and are as long.
        Path(cache_from_source(str(source_file))).unlink(missing_ok=True)
        folder = site / f"{module}-{version}.dist-info"
        folder.mkdir()
        needed = "".join(f"Requires-Dist: {each}\n" for each in requires)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
        (folder / "entry_points.txt").write_text(f"[lmflow]\nmain = {module}\n")
        importlib.invalidate_caches()
        return site

    return install


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of an installer that would have been run; it ends with 7."""
    from lmflow.plugins import installation

    made: list[list[str]] = []

    def record(command: Sequence[str]) -> int:
        made.append(list(command))
        return 7

    monkeypatch.setattr(installation, "run", record)
    monkeypatch.setattr(installation, "find_spec", lambda _: object())
    monkeypatch.setattr(installation.shutil, "which", lambda _: None)
    return made
