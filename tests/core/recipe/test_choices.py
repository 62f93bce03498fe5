"""From the names in a recipe to the components that installed plugins offer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import Requirement
from lmflow.errors import LmflowError, PluginError
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.choice import Choice
from lmflow.recipe.choices import (
    choose,
    choose_trackers,
    default_name,
    find_choice,
    missing_packages,
    result_of_run,
)
from lmflow.recipe.settings import Origin, Setting


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def settings(kind: str = "option", **values: Any) -> dict[str, Setting]:
    """Settings by path; `tuner__name="lora"` is that of tuner.name."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    return {path: Setting(path, value, Origin(kind, f"--{path}")) for path, value in named.items()}


def chosen(plugins: Plugins, slot: str, preferred: Setting | None = None, **values: Any) -> Choice | None:
    problems: list[str] = []
    found = choose(plugins, slot, settings(**values), problems, preferred)
    assert problems == []
    return found


def problems_of(plugins: Plugins, slot: str, **values: Any) -> list[str]:
    problems: list[str] = []
    assert choose(plugins, slot, settings(**values), problems) is None
    return problems


def reference(plugins: Plugins, slot: str, name: str) -> Choice:
    return find_choice(plugins, slot, Setting(f"{slot}.name", name, Origin("option", f"--{slot}")))


# Slots


@pytest.mark.parametrize(
    ("slot", "values", "expected"),
    [
        ("model", {}, "demo"),
        ("model", {"model__path": "x/y"}, "pretrained"),
        ("data", {}, "demo"),
        ("tuner", {}, "full"),
        ("optimizer", {}, "adamw"),
        ("schedule", {}, "cosine"),
        ("aligner", {}, "sft"),
        ("inferencer", {}, "hf"),
        ("reward", {}, None),
        ("context", {}, None),
        ("attention", {}, None),
    ],
)
def test_what_fills_a_slot_that_nothing_names(slot: str, values: dict[str, str], expected: str | None):
    assert default_name(slot, settings(**values)) == expected


def test_a_name_and_where_it_came_from(plugins: Plugins):
    found = chosen(plugins, "tuner", tuner__name="lora")
    assert found is not None
    assert (found.component.name, found.written, str(found.origin)) == ("lora", "lora", "option --tuner.name")
    default = chosen(plugins, "tuner")
    assert default is not None
    assert str(default.origin) == "default"


def test_what_is_preferred_comes_before_the_default_and_after_the_user(plugins: Plugins):
    preferred = Setting("schedule.name", "constant", Origin("plugin", "aligner raft"))
    found = chosen(plugins, "schedule", preferred)
    assert found is not None
    assert (found.component.name, str(found.origin)) == ("constant", "plugin aligner raft")
    mine = chosen(plugins, "schedule", preferred, schedule__name="linear")
    assert mine is not None
    assert mine.component.name == "linear"


@pytest.mark.parametrize("word", [None, "none", "null", "~"])
def test_optional_slots_may_be_left_empty(word: str | None, plugins: Plugins):
    for slot in ("reward", "context", "attention"):
        assert chosen(plugins, slot, **{f"{slot}__name": word}) is None
    assert problems_of(plugins, "tuner", tuner__name=word) != []


def test_options_of_a_slot_that_stays_empty_are_a_mistake(plugins: Plugins):
    assert problems_of(plugins, "context", context__factor="4") == [
        "--context.factor: set, but no context is chosen; name one with --context"
    ]


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (["lora"], "['lora']"), ({"a": "b"}, "{'a': 'b'}")])
def test_a_name_is_text(value: Any, shown: str, plugins: Plugins):
    [problem] = problems_of(plugins, "tuner", tuner__name=value)
    assert problem.startswith(f"--tuner.name: expected a component's name, got {shown}; there are full, lora")


def test_a_name_left_out_is_told_so(plugins: Plugins):
    [problem] = problems_of(plugins, "aligner", aligner__name=None)
    assert problem.startswith("--aligner.name: expected a component's name, got nothing; there are ")


def test_an_unknown_name_is_told_with_its_place(plugins: Plugins):
    [problem] = problems_of(plugins, "aligner", aligner__name="rft")
    assert problem.startswith("--aligner.name: no aligner is called rft; did you mean raft?")


# References


def test_names_with_a_distribution_or_a_value(plugins: Plugins):
    assert reference(plugins, "tuner", "lmflow-lora:lora").written == "lmflow-lora:lora"
    found = reference(plugins, "reward", "python:my.module:score")
    assert (found.component.name, found.written, dict(found.implied)) == (
        "python",
        "python",
        {"function": "my.module:score"},
    )
    with pytest.raises(PluginError, match="tuner lora takes no value after a colon"):
        reference(plugins, "tuner", "lora:4")
    with pytest.raises(PluginError, match="no tuner is called nobodys:lora"):
        reference(plugins, "tuner", "nobodys:lora")


def test_a_model_may_be_named_by_its_place(plugins: Plugins, model_directory: Path, tmp_path: Path):
    found = reference(plugins, "model", str(model_directory))
    assert (found.component.name, dict(found.implied)) == ("pretrained", {"path": str(model_directory)})
    hub = reference(plugins, "model", "someone/some-model")
    assert (hub.component.name, dict(hub.implied)) == ("pretrained", {"path": "someone/some-model"})
    (tmp_path / "adapter_config.json").write_text("{}")
    assert reference(plugins, "model", str(tmp_path)).component.name == "adapter"
    assert reference(plugins, "model", "./nowhere").component.name == "pretrained"
    with pytest.raises(PluginError, match="no model is called word"):
        reference(plugins, "model", "word")


def test_only_models_are_recognised_by_their_place(plugins: Plugins, model_directory: Path):
    with pytest.raises(PluginError, match="no tuner is called"):
        reference(plugins, "tuner", str(model_directory))


def test_a_run_stands_for_its_result(plugins: Plugins, tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed", "result": "adapter"}))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert result_of_run(tmp_path) == str(tmp_path / "adapter")
    found = reference(plugins, "model", str(tmp_path))
    assert (found.component.name, dict(found.implied)) == ("adapter", {"path": str(tmp_path / "adapter")})


def test_a_run_without_a_result_says_how_to_finish_it(tmp_path: Path):
    assert result_of_run(tmp_path) is None
    (tmp_path / "run.json").write_text(json.dumps({"status": "interrupted"}))
    with pytest.raises(LmflowError, match=rf"has no result yet \(status: interrupted\); .*--output {tmp_path}"):
        result_of_run(tmp_path)


def test_a_component_whose_recognition_fails_is_named(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    def fail(reference: str) -> bool:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(plugins.find("model", "adapter"), "recognises", fail)
    with pytest.raises(LmflowError, match=r"model adapter .*recognises\('a/b'\).*ZeroDivisionError: odd"):
        reference(plugins, "model", "a/b")


# Trackers


def trackers(plugins: Plugins, kind: str = "option", **values: Any) -> tuple[dict[str, Choice], list[str]]:
    problems: list[str] = []
    return choose_trackers(plugins, settings(kind, **values), problems), problems


def test_any_number_of_trackers(plugins: Plugins):
    found, problems = trackers(plugins, trackers__name="tensorboard, mlflow")
    assert list(found) == ["trackers.tensorboard", "trackers.mlflow"]
    assert problems == []
    assert list(trackers(plugins, trackers__name=["mlflow"])[0]) == ["trackers.mlflow"]
    for nothing in (None, "none"):
        assert trackers(plugins, trackers__name=nothing) == ({}, [])


def test_mistakes_in_trackers(plugins: Plugins):
    assert trackers(plugins, trackers__name="mlflow,mlflow")[1] == ["--trackers.name: tracker mlflow is named twice"]
    assert trackers(plugins, trackers__name=3)[1] == [
        "--trackers.name: expected names of trackers (tensorboard,mlflow), got 3"
    ]
    assert "did you mean mlflow?" in trackers(plugins, trackers__name="mlflw")[1][0]
    assert (
        trackers(plugins, trackers__mlflow__uri="x")[1]
        == ["--trackers.mlflow.uri: tracker trackers.mlflow is not chosen; name it with --trackers"]
        or "is not chosen" in trackers(plugins, trackers__mlflow__uri="x")[1][0]
    )


def test_options_replace_the_trackers_of_a_file(plugins: Plugins):
    """What the file said of those it named means nothing then."""
    given = settings("file", trackers__mlflow__experiment="x") | settings(trackers__name="tensorboard")
    problems: list[str] = []
    assert list(choose_trackers(plugins, given, problems)) == ["trackers.tensorboard"]
    assert problems == []


# Packages


def test_missing_packages_are_told_with_what_to_install(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    found = reference(plugins, "tuner", "lora")
    needs = (Requirement("no_such_module", "'some[extra]'"), Requirement("json", "json"))
    monkeypatch.setattr(found.component, "requires", needs)
    assert missing_packages(found) == [
        "tuner lora needs no_such_module, which is not installed: pip install 'some[extra]'"
    ]
