"""Installing and removing plugins: by this Python's pip from a local wheel or directory, or by uv; and what is refused."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODULE = """
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

class Mine(Tuner):
    "Train nothing."
    name = "mine"
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Mine]
"""
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "acme-local"
version = "0.3"
[project.entry-points.lmflow]
local = "acme_local"
"""


def wheel(place: Path, name: str, source: str, *, plugin: bool = True, version: str = "1.2") -> Path:
    """A wheel of one module."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    contents = {
        f"{module}.py": source,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if plugin:
        contents[f"{about}/entry_points.txt"] = f"[lmflow]\nmain = {module}\n"
    contents[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{about}/RECORD"])
    file = place / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return file


@pytest.fixture(scope="module")
def environment(make_environment: Callable[..., Any]) -> Any:
    return make_environment()


OFFLINE = ("--", "--no-deps", "--no-index")


@pytest.mark.slow
def test_a_wheel_is_installed_shown_and_removed(environment, tmp_path):
    file = wheel(tmp_path, "acme-mine", MODULE)
    done = environment.run("lmflow", "plugins", "install", file, *OFFLINE, cwd=tmp_path)
    assert f"-m pip install --no-deps --no-index {file}\n" in done.stderr
    assert done.stdout.splitlines()[:2] == ["acme-mine 1.2", "  tuner      mine                  Train nothing."]
    assert "Successfully installed" in done.stderr
    assert "acme-mine" in environment.run("lmflow", "plugins", cwd=tmp_path).stdout

    done = environment.run("lmflow", "plugins", "uninstall", "Acme_Mine", "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (said["exit_code"], said["problems"]) == (0, [])
    assert said["command"][1:] == ["-m", "pip", "uninstall", "--yes", "Acme_Mine"]
    assert "acme-mine" not in environment.run("lmflow", "plugins", cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_directory_that_is_named_like_a_distribution_is_the_directory(environment, tmp_path):
    (tmp_path / "acme-local").mkdir()
    (tmp_path / "acme-local" / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "acme-local" / "acme_local.py").write_text(MODULE)
    done = environment.run("lmflow", "plugins", "install", "acme-local", "--json", *OFFLINE, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said["command"][-1] == "./acme-local"
    assert [each["distribution"] for each in said["plugins"]] == ["acme-local"]
    assert said["plugins"][0]["components"][0]["name"] == "mine"
    environment.run("lmflow", "plugins", "uninstall", "acme-local", cwd=tmp_path)


@pytest.mark.slow
def test_what_is_no_plugin_or_broken_is_an_error(environment, tmp_path):
    plain = wheel(tmp_path, "acme-plain", "", plugin=False)
    done = environment.run("lmflow", "plugins", "install", plain, *OFFLINE, cwd=tmp_path, code=1)
    assert done.stderr.endswith(
        "error: acme-plain is installed and is no plugin: it has no entry point in the group lmflow\n"
    )
    sick = wheel(tmp_path, "acme-sick", "import no_such_module")
    done = environment.run("lmflow", "plugins", "install", sick, *OFFLINE, cwd=tmp_path, code=1)
    assert "error: acme-sick 1.2 is broken: ModuleNotFoundError: No module named 'no_such_module'" in done.stderr
    environment.run("lmflow", "plugins", "uninstall", "acme-sick", cwd=tmp_path)


def test_the_installer_s_exit_code_is_kept(environment, tmp_path):
    done = environment.run("lmflow", "plugins", "install", "acme-nowhere", "--", "--no-index", cwd=tmp_path, code=1)
    assert done.stdout == ""
    assert "No matching distribution found for acme-nowhere" in done.stderr


# Without an installer


def test_options_behind_the_names_go_to_the_installer(calls, lmflow):
    done = lmflow("plugins", "install", "acme-a", "acme-b>=2", "--", "--find-links", "here")
    assert done.code == 7
    assert calls == [[sys.executable, "-m", "pip", "install", "--find-links", "here", "acme-a", "acme-b>=2"]]
    assert "name a distribution" in lmflow("plugins", "install", "--", "--pre").err


def test_the_core_and_what_is_no_plugin_stay(calls, lmflow):
    for name, said in (
        ("LMFLOW_core", "lmflow-core is not uninstalled from here: nothing works without it"),
        ("torch", "no installed plugin is called torch; lmflow plugins lists them"),
        ("raft", "no installed plugin is called raft; it is a component of lmflow-raft"),
        ("lmflow-rafft", "did you mean lmflow-raft?"),
    ):
        done = lmflow("plugins", "uninstall", name)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    assert calls == []


def test_a_component_s_name_is_not_somebody_s_distribution(calls, lmflow):
    done = lmflow("plugins", "install", "raft")
    assert done.code == 2
    assert "raft is a component of lmflow-raft; install that: lmflow plugins install lmflow-raft" in done.err
    assert calls == []
