"""Settings by path: those of a file, and options in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmflow.recipe.gather import gather
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.recipe.settings import RUN_SCOPE, Origin, Scope, Setting, of_section


def option(path: str, value: str) -> Setting:
    return Setting(path, value, Origin("option", f"--{path}"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: pretrained, path: x/y}\ntuner:\n  name: lora\n  rank: 4\ntraining: {seed: 3}\n")
    return path


def gathered(file: Path | None, *options: Setting, scope: Scope = RUN_SCOPE) -> tuple[dict[str, object], list[str]]:
    problems: list[str] = []
    found = gather(file, options, scope, problems)
    return {path: setting.value for path, setting in found.items()}, problems


def test_options_replace_what_the_file_says(file: Path):
    found, problems = gathered(file, option("tuner.rank", "8"), option("training.batch_size", "2"))
    assert problems == []
    assert found == {
        "model.name": "pretrained",
        "model.path": "x/y",
        "tuner.name": "lora",
        "tuner.rank": "8",
        "training.seed": 3,
        "training.batch_size": "2",
    }


def test_a_slot_s_option_names_its_component():
    assert gathered(None, option("tuner", "lora"), option("trackers", "mlflow"))[0] == {
        "tuner.name": "lora",
        "trackers.name": "mlflow",
    }


def test_another_model_drops_the_options_of_the_file_s(file: Path):
    found, _ = gathered(file, option("model", "demo"))
    assert found["model.name"] == "demo"
    assert "model.path" not in found
    assert found["tuner.rank"] == 4, "those of other slots stay: the user may have changed one of two tuners' rank"


def test_an_option_given_twice(file: Path):
    _, problems = gathered(file, option("tuner", "lora"), option("tuner.rank", "1"), option("tuner", "full"))
    assert problems == ["--tuner: given twice ('lora' and 'full')"]


def test_unknown_sections_are_told_once_with_the_nearest(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("tunr: {rank: 4, alpha: 2}\nzzz: {a: 1}\n")
    _, problems = gathered(path, option("trainng.seed", "1"))
    assert problems == [
        f"{path}:1: tunr: unknown section; did you mean tuner?",
        f"{path}:2: zzz: unknown section; lmflow run has {', '.join(RUN_SCOPE.names)}",
        "--trainng.seed: unknown section; did you mean training?",
    ]


def test_what_wrote_a_recipe_may_stand_in_files_alone(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("plugins: {tuner lora: lmflow-lora 0.1}\n")
    assert gathered(path)[1] == []
    assert gathered(None, option("plugins.x", "1"))[1] != []


def test_a_command_has_its_own_sections():
    scope = Scope("score", ("reward",), {"training": TrainingOptions}, preferred={"training.seed": 4, "reward.name": 1})
    assert gathered(None, option("reward", "demo"), scope=scope) == ({"reward.name": "demo"}, [])
    _, problems = gathered(None, option("trackers", "mlflow"), scope=scope)
    assert problems == ["--trackers: unknown section; lmflow score has reward, training"]
    assert scope.preferred_in("training") == {"seed": 4}
    assert scope.names == ("reward", "training")


def test_settings_of_a_section_by_the_rest_of_their_path():
    settings = {path: option(path, "1") for path in ("a.b", "a.c.d", "ab.c")}
    assert [(key, setting.path) for key, setting in of_section(settings, "a")] == [("b", "a.b"), ("c.d", "a.c.d")]


def test_places_and_origins_in_words():
    assert option("a.b", "1").place == "--a.b"
    assert Setting("a.b", 1, Origin("file", "r.yaml:3")).place == "r.yaml:3: a.b"
    assert Setting("a.b", 1, Origin("default")).place == "a.b"
    assert [str(Origin("file", "r.yaml:3")), str(Origin("default"))] == ["file r.yaml:3", "default"]
