"""Going on with a run: with the recipe it began with, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.errors import RunDirectoryError
from lmflow.plugins import load_plugins
from lmflow.recipe.recipe import dump
from lmflow.run.directory import RunDirectory
from lmflow.run.resume import check_same_data, check_same_recipe, check_same_weights, comparable, how_to_resume
from lmflow.run.run import run
from lmflow.run_files import resume_command
from lmflow.testing.runs import write_records
from lmflow.testing.tiny import tiny_model


@pytest.fixture
def begun(tmp_path: Path, small_recipe: Callable[..., Any]) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.write_recipe(dump(small_recipe().recipe))
    directory.close()
    return directory


def test_the_same_recipe_goes_on(begun: RunDirectory, small_recipe: Callable[..., Any]):
    check_same_recipe(begun, small_recipe().recipe, resume=True)


def test_another_number_of_processes_goes_on(begun: RunDirectory, small_recipe: Callable[..., Any]):
    check_same_recipe(begun, small_recipe(launch__processes=2).recipe, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__micro_batch_size": 1, "training__gradient_checkpointing": True},
        {"training__checkpoint_every": 7, "training__keep_checkpoints": 9, "training__checkpoint_minutes": None},
        {"inferencer__batch_tokens": 512},
        {"data__streaming": True},
    ],
)
def test_what_changes_memory_only_may_change(
    changes: dict[str, Any], begun: RunDirectory, small_recipe: Callable[..., Any]
):
    check_same_recipe(begun, small_recipe(**changes).recipe, resume=True)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"training__learning_rate": 0.125}, ["  training.learning_rate: 0.0002 in the run, 0.125 now"]),
        (
            {"training__seed": 4, "training__batch_size": 2},
            ["  training.batch_size: 3 in the run, 2 now", "  training.seed: 0 in the run, 4 now"],
        ),
        ({"tuner__name": "lora"}, ["  tuner.name: full in the run, lora now", "tuner.rank: nothing in the run, 8 now"]),
    ],
)
def test_what_differs_is_shown(
    changes: dict[str, Any], shown: list[str], begun: RunDirectory, small_recipe: Callable[..., Any]
):
    with pytest.raises(RunDirectoryError) as caught:
        check_same_recipe(begun, small_recipe(**changes).recipe, resume=True)
    text = str(caught.value)
    assert text.startswith(f"{begun.path} was started with another recipe:\n")
    assert all(line in text for line in shown), text
    assert text.endswith("or start a new run from its result with --model.")


def test_no_more_than_five_differences_are_shown(begun: RunDirectory, small_recipe: Callable[..., Any]):
    with pytest.raises(RunDirectoryError) as caught:
        check_same_recipe(begun, small_recipe(tuner__name="lora").recipe, resume=True)
    assert str(caught.value).count(" in the run, ") <= 5


def test_a_section_more_is_told_as_such(begun: RunDirectory, small_recipe: Callable[..., Any]):
    recipe = begun.recipe.read_text()
    begun.recipe.write_text(recipe + "more: {name: x}\n")
    text = dump(small_recipe().recipe)
    assert recipe == text
    with pytest.raises(RunDirectoryError, match="another recipe"):
        check_same_recipe(begun, small_recipe().recipe, resume=True)


def test_a_new_run_is_compared_with_nothing(begun: RunDirectory, small_recipe: Callable[..., Any], tmp_path: Path):
    check_same_recipe(begun, small_recipe(training__seed=9).recipe, resume=False)
    killed_early = RunDirectory(tmp_path / "other")
    killed_early.close()
    check_same_recipe(killed_early, small_recipe().recipe, resume=True)


def test_versions_of_plugins_and_the_launch_may_change():
    old = "tuner: {name: lora}\nlaunch: {processes: 1}\nplugins: {'tuner lora': lmflow-lora 0.1.0}\n"
    new = "tuner: {name: lora}\nlaunch: {processes: 4}\nplugins: {'tuner lora': lmflow-lora 0.2.0}\n"
    assert comparable(old) == comparable(new)
    other = new.replace("lmflow-lora 0.2.0", "somebodys-lora 0.2.0")
    assert comparable(old) != comparable(other), "another distribution's is another component"


@pytest.mark.parametrize("text", ["", "plugins:\n", "tuner: {name: full}\n"])
def test_recipes_without_plugins(text: str):
    assert comparable(text)["plugins"] == {}


def test_what_to_type():
    assert resume_command(Path("runs/a")) == "lmflow run --resume --output runs/a"
    told = how_to_resume(Path("runs/a"))
    assert told == "Stopped; what was finished is in runs/a. Continue with: lmflow run --resume --output runs/a"


def test_a_stage_is_continued_with_all_of_them(tmp_path: Path):
    stage = tmp_path / "out" / "stages" / "sft"
    stage.mkdir(parents=True)
    assert resume_command(stage) == f"lmflow run --resume --output {stage}", "no run is there that it is a part of"
    (tmp_path / "out" / "recipe.yaml").write_text("stages: {}\n")
    assert resume_command(stage) == f"lmflow run --resume --output {tmp_path / 'out'}"


def test_the_command_can_be_pasted_wherever_the_run_is():
    for text in (resume_command(Path("out put")), how_to_resume(Path("out put"))):
        assert text.endswith("lmflow run --resume --output 'out put'")


def test_of_other_stages_the_names_are_told_and_no_line(begun: RunDirectory, small_recipe: Callable[..., Any]):
    begun.recipe.write_text("stages:\n  sft: {tuner: {name: lora}}\n  more: {tuner: {name: full}}\n")
    with pytest.raises(RunDirectoryError) as caught:
        check_same_recipe(begun, small_recipe().recipe, resume=True)
    assert str(caught.value).splitlines()[1:-1] == ["  stages sft, more in the run, no stages now"]


# The same data and the same weights


def interrupted(small_recipe: Callable[..., Any], place: Path, model_directory: Path) -> tuple[Any, Path, Path]:
    """A run that ended after its first step, and the model and the records of its own that it began with."""
    model = shutil.copytree(model_directory, place / "model")
    records = write_records(place / "train.jsonl", [{"prompt": f"Say {i}", "answer": f"{i} {i}"} for i in range(9)])
    heldout = write_records(place / "heldout.jsonl", [{"prompt": "Say 9", "answer": "9 9"}])
    resolved = small_recipe(
        model__path=str(model), data__path=str(records), data__validation=str(heldout), training__max_steps=2
    )
    run(resolved, load_plugins(), output=place / "run", estimate=False)
    record = json.loads((place / "run" / "run.json").read_text())
    (place / "run" / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    return resolved, model, records


def test_a_run_goes_on_only_with_the_data_and_the_weights_it_began_with(
    small_recipe: Callable[..., Any], tmp_path: Path, model_directory: Path
):
    resolved, model, records = interrupted(small_recipe, tmp_path, model_directory)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["weights"]["model"]["path"] == str(model)

    def resumed() -> str:
        with pytest.raises(RunDirectoryError) as caught:
            run(resolved, load_plugins(), output=tmp_path / "run", resume=True, estimate=False)
        return str(caught.value)

    lines = records.read_text().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[0]], [lines[0].replace("Say 0", "Say 7"), *lines[1:]]):
        records.write_text("".join(changed))
        message = resumed()
        assert f"{tmp_path / 'run'} was started with other data: {records} (9 records, SHA-256 " in message
        assert f"then, {records} ({len(changed)} records, SHA-256 " in message
    records.write_text("".join(lines))
    heldout = tmp_path / "heldout.jsonl"
    kept = heldout.read_text()
    heldout.write_text(kept.replace("9 9", "8 8"))
    assert f"other held-out data: {heldout} (SHA-256 " in resumed()
    heldout.write_text(kept)
    tiny_model(seed=5).save(model)
    message = resumed()
    assert f"was started with other weights: {model} (fingerprint " in message
    assert f"then, {model} (fingerprint " in message
    shutil.rmtree(model)
    shutil.copytree(model_directory, model)
    assert run(resolved, load_plugins(), output=tmp_path / "run", resume=True, estimate=False).status == "completed"


def test_data_that_cannot_be_told_from_other_data_is_not_compared():
    known, unknown = {"path": "a", "sha256": "1" * 64}, {"path": "a", "sha256": "unknown-5"}
    for before, now in ((None, known), (unknown, known), (known, unknown), (known, known)):
        check_same_data(Path("run"), before, now)
    check_same_weights(Path("run"), "model", {"path": "a", "fingerprint": None}, {"path": "a", "fingerprint": "1"})
