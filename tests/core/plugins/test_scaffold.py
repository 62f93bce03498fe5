"""A plugin of one's own: which names are accepted, what is suggested for others, and what a failure leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lmflow.errors import LmflowError, RecipeError, RunDirectoryError
from lmflow.plugins import Plugins, load_plugins
from lmflow.plugins.scaffold import (
    KINDS,
    is_usable,
    known_kind,
    make_plugin,
    next_commands,
    printable,
    suggestion,
    usable_name,
)

HOOK = Path(__file__).parents[3] / "templates" / "plugin" / "hooks" / "pre_gen_project.py"


@pytest.mark.parametrize(
    ("said", "kind"), [("Tuner", "tuner"), ("data", "data-format"), ("data_format", "data-format")]
)
def test_kinds_are_known_by_what_people_call_them(said, kind):
    assert known_kind(said) == kind


@pytest.mark.parametrize(("said", "hint"), [("tunner", "did you mean tuner?"), ("xyz", "there are tuner, aligner")])
def test_a_kind_that_there_is_none_of_names_those_that_there_are(said, hint):
    with pytest.raises(RecipeError, match=hint.replace("?", r"\?")):
        known_kind(said)


@pytest.mark.parametrize("name", ["My Tuner", "my_tuner", "My.Tuner", "my-tuner "])
def test_a_name_is_written_as_package_indexes_write_it(name):
    assert usable_name(name, "tuner", Plugins()) == "my-tuner"


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("1up", "my-1up"),
        ("3d", "my-3d"),
        ("json", "json-tuner"),
        ("Ärger!", "arger"),
        ("tuner", "tuner-tuner"),
        ("汉", "my-tuner"),
        ("tests", "tests-tuner"),
        ("lmflow-1up", "my-tuner"),
        ("b" * 80, "b" * 54),
    ],
)
def test_a_name_that_cannot_be_used_is_answered_with_one_that_can(name, better):
    with pytest.raises(RecipeError, match=f"try {better}$"):
        usable_name(name, "tuner", Plugins())
    assert is_usable(suggestion(name, "tuner"))


@pytest.mark.parametrize(
    ("name", "owner"), [("lora", "lmflow-lora"), ("torch", "torch"), ("lmflow-raft", "lmflow-raft")]
)
def test_a_name_that_is_installed_is_refused_naming_whose_it_is(name, owner):
    with pytest.raises(RecipeError, match=f"{name} is taken by {owner}, which is installed; try my-{name}"):
        usable_name(name, "tuner", load_plugins())


@pytest.mark.parametrize(
    "name",
    [
        *("my-tuner", "x", "a1-b2", "1up", "class", "match", "json", "reward", "a--b", "a-", "None", "true", "tests"),
        *("lmflow", "lmflow-x", "lmflow-1up", "lmflow-class", "lmflow-tuner", "a" * 60, "a" * 61),
    ],
)
def test_cookiecutters_hook_accepts_the_same_names(name, tmp_path):
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK.read_text().replace("{{ cookiecutter.name }}", name))
    done = subprocess.run([sys.executable, hook], capture_output=True, check=False)
    assert (done.returncode == 0) == is_usable(name)


def test_a_directory_that_exists_is_not_touched(tmp_path):
    (tmp_path / "my-tuner").mkdir()
    (tmp_path / "my-tuner" / "kept").touch()
    with pytest.raises(RunDirectoryError, match="exists; name another plugin"):
        make_plugin("tuner", "my-tuner", tmp_path, Plugins())
    assert [path.name for path in tmp_path.rglob("*")] == ["my-tuner", "kept"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LmflowError, match=r"file.*cannot be written"):
        make_plugin("tuner", "my-tuner", tmp_path / "file", Plugins())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, output_dir, **options):
        (Path(output_dir) / "half").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cookiecutter.main.cookiecutter", fail)
    with pytest.raises(LmflowError, match="No space left on device"):
        make_plugin("tuner", "my-tuner", tmp_path, Plugins())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_home_directory_is_neither_read_nor_written(kind, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cookiecutterrc").write_text("default_context: {author: somebody from a file}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COOKIECUTTER_CONFIG", str(home / ".cookiecutterrc"))
    made = make_plugin(kind, "my-own", tmp_path, Plugins())
    assert "somebody" not in (made / "pyproject.toml").read_text()
    assert [path.name for path in home.iterdir()] == [".cookiecutterrc"]


def test_the_component_is_named_without_the_prefix_of_the_distribution(tmp_path: Path):
    made = make_plugin("tuner", "lmflow-last-layers", tmp_path, load_plugins())
    component = (made / "src" / "lmflow_last_layers" / "tuner.py").read_text()
    assert 'name = "last-layers"' in component
    assert "class LastLayers(Tuner)" in component
    assert 'last-layers = "lmflow_last_layers.plugin"' in (made / "pyproject.toml").read_text()
    assert "lmflow run --tuner last-layers" in next_commands(made, "tuner")


AWKWARD = [
    "{{ 7 * 7 }} {% raw %} {# x #} {braces}",
    '"""; import os #',
    "ends in a backslash \\",
    "new\nline\ttab\x00\x1b[31m\u2028end",
    "ünï 漢字 🎉 \udcff",
    "\\N{DASH} \\u1234 \\",
    "'single' `ticks` $(rm) %s",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_description_stands_as_it_was_given(text, tmp_path):
    made = make_plugin("tuner", "my-own", tmp_path, Plugins(), author=text, description=text)
    project = tomllib.loads((made / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["description"] == printable(text)
    assert project["authors"] == [{"name": printable(text)}]
    module = ast.parse((made / "src" / "my_own" / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(module, clean=False) == printable(text)
    assert printable(text) in (made / "README.md").read_text(encoding="utf-8")
    assert printable("{{ 7 * 7 }}\n") == "{{ 7 * 7 }}"


def test_a_description_that_no_index_takes_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"--description: has 501 characters; use at most 500"):
        make_plugin("tuner", "my-own", tmp_path, Plugins(), description="x" * 501)


def test_a_name_too_long_says_so():
    with pytest.raises(RecipeError, match=r"longer than 60 characters"):
        usable_name("b" * 80, "tuner", Plugins())


def test_a_module_that_belongs_to_no_distribution_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "acme_loose.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="acme-loose is taken by the module acme_loose"):
        usable_name("acme-loose", "tuner", Plugins())


def test_it_asks_for_the_core_and_not_for_everything(tmp_path):
    made = make_plugin("tuner", "my-own", tmp_path, Plugins())
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert [each.partition(">")[0] for each in asked] == [
        "lmflow-core",
        "lmflow-demo",
        "lmflow-lora",
        "lmflow-raft",
        "pytest",
    ]
