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


pytestmark = pytest.mark.xdist_group("templates")
WHOLE = "reward"
"""The kind whose tests are run by the very command of its README, and which is installed by it."""
RUNNING = [kind for kind in KINDS if kind not in ("evaluator", "exporter", "command")]
"""Kinds that a run has; the others are tried by what their own tests call."""
THREE_OF_EACH = """
def pytest_collection_modifyitems(items):
    suites = {}
    for item in items:
        if item.function.__module__.startswith("lmflow.testing"):
            suites.setdefault(item.path, []).append(item)
    for suite in suites.values():
        kept = {suite[0], suite[len(suite) // 2], suite[-1]}
        items[:] = [item for item in items if item not in suite or item in kept]
"""
"""Keeps three checks of each conformance suite, which are tried whole elsewhere, and all that a plugin tests itself."""


@pytest.fixture(scope="module")
def environment(make_environment: Callable[..., Any]) -> Any:
    """An environment to install plugins into."""
    return make_environment()


@pytest.fixture(scope="module")
def made(environment: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plugin of each kind, made and installed by the first commands a newcomer types; others than one by one pip."""
    place = tmp_path_factory.mktemp("work")
    for kind in KINDS:
        environment.run("lmflow", "new", kind, f"my-{kind}", "--author", "A. Stranger", cwd=place)
    plugins = {kind: place / f"my-{kind}" for kind in KINDS}
    first = {kind: commands(plugin)[0] for kind, plugin in plugins.items()}
    assert set(first.values()) == {'pip install -e ".[test]"'}
    environment.run("bash", "-c", first[WHOLE], cwd=plugins[WHOLE])
    others = [word for kind in KINDS if kind != WHOLE for word in ("-e", f"{plugins[kind]}[test]")]
    environment.run("pip", "install", *others, cwd=place)
    return plugins


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of plugin that there is a template for."""
    return request.param


@pytest.fixture(scope="module")
def plugin(kind: str, made: dict[str, Path]) -> Path:
    """The plugin of the kind."""
    return made[kind]


def commands(plugin: Path) -> list[str]:
    """The commands that its README gives, in order."""
    return [line[2:] for line in (plugin / "README.md").read_text().splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_a_plugin_passes_its_own_tests(environment, made):
    [command] = [each for each in commands(made[WHOLE]) if each.startswith("pytest")]
    said = environment.run("bash", "-c", f"{command} -p no:cacheprovider", cwd=made[WHOLE]).stdout
    assert "failed" not in said
    assert "skipped" not in said


@pytest.fixture(scope="module")
def outcomes(environment: Any, made: dict[str, Path]) -> list[str]:
    """A line for each test of every plugin, from one process, which imports the libraries once."""
    place = made[WHOLE].parent
    (place / "three_of_each.py").write_text(THREE_OF_EACH)
    # The root is the place of them all, so that a test's line begins with its plugin; warnings would repeat the names.
    command = ["python", "-m", "pytest", "-v", f"--rootdir={place}", "--disable-warnings", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", "-p", "three_of_each"]
    return environment.run(*command, *made.values(), cwd=place).stdout.splitlines()


@pytest.mark.slow
def test_a_plugin_of_each_kind_passes_its_own_tests(outcomes, plugin):
    own = [line for line in outcomes if line.startswith(f"{plugin.name}/tests/")]
    assert len(own) >= 4, own
    assert [line for line in own if "PASSED" not in line] == []


def test_a_plugin_is_listed(environment, plugin, kind):
    listed = json.loads(environment.run("lmflow", "plugins", "--json", cwd=plugin).stdout)
    [entry] = [each for each in listed["plugins"] if each["distribution"] == plugin.name]
    assert entry["status"] == "loaded"
    if kind == "listener":
        assert entry["events"] == ["lmflow_run_finished"]
    else:
        assert [component["name"] for component in entry["components"]] == [plugin.name]
    [command] = [each for each in commands(plugin) if each.startswith("lmflow plugins show")]
    assert plugin.name in environment.run("bash", "-c", command, cwd=plugin).stdout


RUN_ALL = """
import os, sys
from lmflow.cli import main
for line in sys.stdin:
    place, *words = line.split()
    os.makedirs(place)
    os.chdir(place)
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code, (words, stop.code)
"""
SHORT = {"--training.max_steps": "1", "--data.limit": "16"}
FEW_ANSWERS = {"--aligner.heldout_prompts": "2", "--aligner.max_new_tokens": "4"}
FEW_SAMPLES = {"--aligner.prompts": "4", "--aligner.samples": "2"}


def shortened(words: list[str], kind: str) -> list[str]:
    """A run of one step that asks and samples little, as far as it does so at all."""
    extra = SHORT | ({} if kind == "aligner" else FEW_ANSWERS) | (FEW_SAMPLES if "raft" in words else {})
    return [*words, *(word for option, value in extra.items() if option not in words for word in (option, value))]


@pytest.fixture(scope="module")
def runs(environment: Any, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each kind's run is, by its README's command but short, all in one process."""
    place = tmp_path_factory.mktemp("runs")
    lines = []
    for kind in RUNNING:
        [command] = [each for each in commands(made[kind]) if each.startswith("lmflow run")]
        lines.append(" ".join([str(place / kind), *shortened(command.split()[1:], kind)]))
    (place / "run_all.py").write_text(RUN_ALL)
    (place / "lines.txt").write_text("\n".join(lines))
    environment.run("bash", "-c", "python run_all.py < lines.txt", cwd=place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNING, indirect=True, scope="module")
def test_a_plugin_runs_on_the_embedded_default(runs, plugin, kind):
    [run] = (runs / kind / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert plugin.name in (run / ("run.json" if kind == "listener" else "recipe.yaml")).read_text()
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
