"""The template, for every kind of plugin: what comes of it installs, is listed, runs and passes its tests, unedited."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from lmflow.plugins import Plugins
from lmflow.plugins.scaffold import KINDS, make_plugin

TEMPLATE = Path(__file__).parents[2] / "templates" / "plugin"


@pytest.fixture(scope="module")
def environment(make_environment: Callable[..., Any]) -> Any:
    """An environment to install plugins into."""
    return make_environment()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of plugin that there is a template for."""
    return request.param


@pytest.fixture(scope="module")
def plugin(kind: str, environment: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin of the kind, made and installed by the first commands a newcomer types."""
    place = tmp_path_factory.mktemp("work")
    environment.run("lmflow", "new", kind, f"my-{kind}", "--author", "A. Stranger", cwd=place)
    environment.run("bash", "-c", commands(place / f"my-{kind}")[0], cwd=place / f"my-{kind}")
    return place / f"my-{kind}"


def commands(plugin: Path) -> list[str]:
    """The commands that its README gives, in order."""
    return [line[2:] for line in (plugin / "README.md").read_text().splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_a_plugin_passes_its_own_tests(environment, plugin, kind):
    [command] = [each for each in commands(plugin) if each.startswith("pytest")]
    said = environment.run("bash", "-c", f"{command} -p no:cacheprovider", cwd=plugin).stdout
    assert "failed" not in said
    assert int(said.split(" passed")[0].split()[-1]) >= 10, said
    assert "skipped" not in said


def test_a_plugin_is_listed(environment, plugin, kind):
    listed = json.loads(environment.run("lmflow", "plugins", "--json", cwd=plugin).stdout)
    [entry] = [each for each in listed["plugins"] if each["distribution"] == plugin.name]
    assert entry["status"] == "loaded"
    [component] = entry["components"]
    assert component["name"] == plugin.name
    [command] = [each for each in commands(plugin) if each.startswith("lmflow plugins show")]
    assert plugin.name in environment.run("bash", "-c", command, cwd=plugin).stdout


@pytest.mark.slow
def test_a_plugin_runs_on_the_embedded_default(environment, plugin, kind, tmp_path):
    [command] = [each for each in commands(plugin) if each.startswith("lmflow run")]
    environment.run("bash", "-c", command, cwd=tmp_path)
    [run] = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert plugin.name in (run / "recipe.yaml").read_text()
    assert "A. Stranger" in (plugin / "pyproject.toml").read_text()


def test_a_plugin_builds_into_a_wheel_that_holds_it_whole(environment, plugin, tmp_path):
    environment.run("python", "-m", "build", "--no-isolation", "--outdir", tmp_path, cwd=plugin)
    [wheel] = tmp_path.glob("*.whl")
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1
    package = plugin.name.replace("-", "_")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"{package}/plugin.py", f"{package}/py.typed"} <= set(archive.namelist())
        [about] = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = Parser().parsestr(archive.read(about).decode())
    assert metadata["Name"] == plugin.name
    assert any(each.startswith("lmflow-core") for each in metadata.get_all("Requires-Dist", []))


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One plugin of each kind, with an awkward description."""
    place = tmp_path_factory.mktemp("kinds")
    description = 'A "quoted"\nback\\slash of 3.'
    return [make_plugin(kind, f"my-{kind}", place, Plugins(), description=description) for kind in KINDS]


def test_what_is_written_is_formatted_and_lints(all_kinds):
    for step in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *step, "--no-cache", *all_kinds], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_is_written_is_typed_strictly(all_kinds, tmp_path):
    for plugin in all_kinds:
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=plugin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{plugin.name}: {done.stdout}{done.stderr}"


def test_an_awkward_description_stands_where_it_should(all_kinds):
    for plugin in all_kinds:
        project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
        assert project["description"] == 'A "quoted" back\\slash of 3.'
        compile((plugin / "src" / plugin.name.replace("-", "_") / "__init__.py").read_text(), "init", "exec")


def test_nothing_of_the_template_language_is_left(all_kinds):
    for plugin in all_kinds:
        for path in (path for path in plugin.rglob("*") if path.is_file()):
            text = path.read_text().replace("${{ matrix.python }}", "")
            assert not any(mark in text for mark in ("{{", "{%", "{#", "cookiecutter")), path
            assert text.endswith("\n") or not text, path
            assert not text.endswith("\n\n"), path


def test_cookiecutter_and_lmflow_new_write_the_same(tmp_path):
    for kind in KINDS:
        command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", tmp_path / "cut"]
        answers = [f"kind={kind}", f"name=your-{kind}"]
        home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        subprocess.run([*command, *answers], check=True, capture_output=True, env=home)
        ours = make_plugin(kind, f"your-{kind}", tmp_path / "new", Plugins())
        assert contents(ours) == contents(tmp_path / "cut" / f"your-{kind}")


def contents(directory: Path) -> dict[str, str]:
    """Every file's text by its path."""
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("name", ["1up", "My_Tuner", "class", "json", "tuner", "data-format", "a--b", "a b", "ärger"])
def test_cookiecutter_refuses_a_name_that_cannot_be_used(name, tmp_path):
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", str(tmp_path)]
    home = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*command, f"name={name}"], check=False, capture_output=True, text=True, env=home)
    assert done.returncode != 0
    assert "cannot name a plugin" in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]
