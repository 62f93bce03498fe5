"""A plugin of one's own: which names are accepted, what is suggested for others, and what a failure leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lmflow.errors import LmflowError, RecipeError, RunDirectoryError
from lmflow.plugins import Plugins, load_plugins
from lmflow.plugins.scaffold import KINDS, is_usable, known_kind, make_plugin, next_commands, suggestion, usable_name

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
    [("1up", "up"), ("json", "json-tuner"), ("Ärger!", "arger"), ("tuner", "tuner-tuner"), ("汉", "my-tuner")],
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
    "name", ["my-tuner", "x", "a1-b2", "1up", "class", "match", "json", "reward", "a--b", "a-", "None"]
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
