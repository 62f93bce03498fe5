"""The command that installs: the one that serves this Python."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmflow.doctor import installer
from lmflow.doctor.installer import pip


def world(monkeypatch: pytest.MonkeyPatch, *, has_pip: bool, found: str | None = None, active: str = "") -> None:
    monkeypatch.setattr(installer, "find_spec", lambda _: object() if has_pip else None)
    monkeypatch.setattr(installer.shutil, "which", lambda _: found)
    monkeypatch.setattr(sys, "executable", "/home/ada/my env/bin/python")
    monkeypatch.setattr(sys, "prefix", "/home/ada/my env")
    monkeypatch.setenv("VIRTUAL_ENV", active)


def test_the_pip_beside_this_python_is_called_by_its_name(monkeypatch):
    world(monkeypatch, has_pip=True, found="/home/ada/my env/bin/pip")
    assert pip("install torch") == "pip install torch"


@pytest.mark.parametrize("found", [None, "/usr/bin/pip"])
def test_another_python_s_pip_is_not_called(monkeypatch, found: str | None):
    world(monkeypatch, has_pip=True, found=found)
    assert pip("install torch") == "'/home/ada/my env/bin/python' -m pip install torch"


def test_an_environment_without_pip_was_made_by_uv(monkeypatch):
    world(monkeypatch, has_pip=False, active="/home/ada/my env")
    assert pip("install 'torch>=2.11'") == "uv pip install 'torch>=2.11'"
    world(monkeypatch, has_pip=False)
    assert pip("uninstall torch") == "uv pip uninstall --python '/home/ada/my env/bin/python' torch"


def test_here_it_names_a_command_that_is_there():
    command = pip("install torch").split()[0].strip("'")
    assert command in ("pip", "uv") or Path(command).exists()
