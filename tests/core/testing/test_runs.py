"""Small whole runs around a component: what they load, how they are set, made once, interrupted and compared."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmflow.builtin.full import Full
from lmflow.builtin.sft import Sft
from lmflow.components import Tuner
from lmflow.errors import RecipeError
from lmflow.inference.hf import HuggingFace
from lmflow.models.pretrained import Pretrained
from lmflow.plugins import Plugins
from lmflow.run_files import METRICS
from lmflow.testing import runs
from lmflow.testing.runs import (
    HELD_OUT,
    NUMBERS,
    RECORDS,
    SETTINGS,
    SMALL,
    Bench,
    as_options,
    check_left_checkpoint,
    component_settings,
    count_vowels,
    has_default_objective,
    metrics_lines,
    over,
    plugins_with,
    resolve_settings,
    stored_recipe,
    supply,
    write_records,
)


class Mine(HuggingFace):
    """Not installed."""

    name = "mine"


class Neighbour(EntryPoint):
    """An installed plugin that would harm whoever loads it."""

    def load(self) -> Any:
        raise AssertionError("it was loaded")


@pytest.fixture
def _neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken plugin is installed beside those there are."""
    installed = [*entry_points(group="lmflow"), Neighbour("plugin", "some_neighbour.plugin", "lmflow")]
    monkeypatch.setattr(runs, "entry_points", lambda group: installed)


@pytest.mark.usefixtures("_neighbour")
def test_a_component_that_is_not_installed_stands_beside_the_core_alone() -> None:
    plugins = plugins_with(Mine, companions=())
    assert set(plugins.distributions()) == {"lmflow-core", "in-process"}
    assert Mine in plugins.classes("inferencer")
    assert not plugins.broken


@pytest.mark.usefixtures("_neighbour")
def test_a_component_of_the_core_needs_nothing_else() -> None:
    assert set(plugins_with(Full, companions=()).distributions()) == {"lmflow-core"}


@pytest.mark.usefixtures("_neighbour")
def test_an_installed_component_brings_its_own_plugin() -> None:
    speculative = pytest.importorskip("lmflow_speculative.speculative").Speculative
    plugins = plugins_with(speculative, Mine, companions=())
    assert set(plugins.distributions()) == {"lmflow-core", "lmflow-speculative", "in-process"}


@pytest.mark.usefixtures("_neighbour")
def test_companions_are_there_too() -> None:
    pytest.importorskip("lmflow_lora")
    assert "lora" in plugins_with(Full, companions=("lmflow-lora", "lmflow-not-installed")).offers("tuner")
    assert not plugins_with(Full, companions=("lmflow-lora",)).broken


class Nameless(Tuner):
    """Has an option without a description."""

    name = "nameless"
    rank: int = 4

    def prepare(self, module: Any) -> Any:
        """Nothing."""
        return module


def test_a_component_that_would_be_left_out_fails_with_the_reason() -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"lmflow would leave the plugin out: tuner nameless: option rank has no desc"
    ):
        plugins_with(Nameless, companions=())


# Settings


def test_settings_of_another_component_take_the_options_of_the_one_before_with_them() -> None:
    settings = {"tuner.name": "lora", "tuner.rank": 4, "training.epochs": 2}
    assert over(settings, {"tuner.name": "full"}) == {"tuner.name": "full", "training.epochs": 2}
    assert over(settings, {"tuner.rank": 8}) == {**settings, "tuner.rank": 8}
    assert settings["tuner.rank"] == 4


def test_options_as_the_command_line_gives_them() -> None:
    [first, second] = as_options(tuner="lora", tuner__target_modules="q,v")
    assert (first.path, first.value) == ("tuner", "lora")
    assert (second.path, second.value, second.origin.place) == ("tuner.target_modules", "q,v", "--tuner.target_modules")


def test_a_component_is_named_with_its_options() -> None:
    plugins = plugins_with(Mine, companions=())
    found = component_settings(plugins, Mine(batch_tokens=64))
    assert (found["inferencer.name"], found["inferencer.batch_tokens"]) == ("mine", 64)


def test_where_two_plugins_offer_a_name_the_distribution_stands_before_it() -> None:
    class Hf(HuggingFace):
        """Called like the core's."""

        name = "hf"

    plugins = plugins_with(Hf, companions=())
    assert component_settings(plugins, Hf())["inferencer.name"] == "in-process:hf"
    assert component_settings(plugins, HuggingFace())["inferencer.name"] == "lmflow-core:hf"


def test_a_component_that_no_plugin_offers_fails_with_what_to_do() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"does not offer inferencer mine; see plugins_with"):
        component_settings(plugins_with(companions=()), Mine())


def test_settings_that_make_no_recipe() -> None:
    plugins = plugins_with(companions=())
    parts = {"model.name": "pretrained", "model.path": "x", "data.path": "x.jsonl"}
    assert resolve_settings(plugins, {**parts, **SETTINGS, **SMALL}).recipe.training.batch_size == 3
    with pytest.raises(RecipeError, match=r"training\.epocs"):
        resolve_settings(plugins, {"training.epocs": 3})


# Records, rewards, what authors have to supply


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    rows = [{"prompt": "数据"}, {"prompt": "a\nb"}]
    file = write_records(tmp_path / "r.jsonl", rows)
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_the_reward_counts_vowels() -> None:
    assert count_vowels([], ["a model", "xyz", ""], []) == [3.0, 0.0, 0.0]


def test_a_fixture_that_is_missing_is_named_with_its_suite() -> None:
    with pytest.raises(pytest.fail.Exception, match="SimpleNamespace supplies no tuner: write a fixture `tuner`"):
        supply(SimpleNamespace(), "tuner")


def test_figures_of_time_are_left_out_of_metrics(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 2.0, "tokens_per_second": 9, "seconds": 1}\n')
    assert metrics_lines(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_a_run_without_a_checkpoint_fails_with_the_usual_cause(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"expected a run interrupted to leave a checkpoint; .*checkpoints=False"):
        check_left_checkpoint(tmp_path, "interrupted")


def test_an_objective_of_its_own_is_known_by_what_is_overridden() -> None:
    class Own(Sft):
        """With other items."""

        def items(self, *arguments: Any) -> Any:
            """Something else."""

    assert has_default_objective(Sft())
    assert not has_default_objective(Own())


# Runs


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return plugins_with(companions=())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins, model_directory: Path) -> Bench:
    model = Pretrained(path=str(model_directory))
    return Bench(tmp_path_factory.mktemp("bench"), plugins, Full(), model, RECORDS)


FEW = {**SMALL, "training.max_steps": 4}


def test_records_at_the_end_are_held_out_by_name(bench: Bench) -> None:
    data = bench.recipe(FEW).recipe.data
    train, held = (Path(str(path)).read_text().splitlines() for path in (data.path, data.validation))
    assert (len(train), len(held)) == (len(NUMBERS) - HELD_OUT, HELD_OUT)
    assert "twelve" in held[-1]


def test_a_recipe_has_a_fresh_component_of_the_same_options(bench: Bench) -> None:
    one, other = (bench.recipe(FEW).recipe.tuner for _ in range(2))
    assert one == other == bench.component
    assert one is not other
    assert one is not bench.component


def test_what_makes_no_recipe_fails_with_all_that_is_wrong(bench: Bench) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)This tuner and what the test combines it with make no recipe:.*alignr"
    ):
        bench.recipe({"alignr.name": "sft"})


def test_a_run_is_carried_out_once_and_is_sound(bench: Bench) -> None:
    first = bench.run("whole", FEW)
    assert bench.run("whole", FEW) is first
    assert first.record["metrics"]["steps"] == 4
    bench.check_sound(first, 1e-4)
    assert stored_recipe(bench.plugins, first.directory).recipe.training.max_steps == 4


def test_runs_of_one_recipe_are_the_same_and_of_another_are_not(bench: Bench) -> None:
    whole, again = bench.run("whole", FEW), bench.run("again", FEW)
    bench.check_same(again, whole, "chance")
    other = bench.run("other", {**FEW, "training.learning_rate": 1e-2})
    with pytest.raises(
        AssertionError, match=rf"expected other and whole to write the same {METRICS}; .*(?s:.*)cause: chance"
    ):
        bench.check_same(other, whole, "chance")


def test_in_pieces_a_run_ends_the_same(bench: Bench) -> None:
    bench.check_same(bench.run_in_pieces("whole", FEW), bench.run("whole", FEW), "something that no checkpoint holds")


def test_a_run_that_failed_fails_again_without_being_carried_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fail(*arguments: Any, **_: Any) -> Any:
        calls.append(arguments)
        raise ValueError("broken")

    monkeypatch.setattr(runs, "run", fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            bench.run("fails", FEW)
    assert len(calls) == 1


def test_a_run_that_ends_before_it_can_be_interrupted_is_a_failure(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(
        pytest.fail.Exception, match=rf"expected run to be interrupted 99 lines into {METRICS}; it ran to"
    ):
        runs.interrupt(bench.recipe({**FEW, "training.max_steps": 1}), bench.plugins, tmp_path / "run", after=99)


def test_a_run_is_prepared_up_to_its_aligner(bench: Bench) -> None:
    prepared = bench.prepare(FEW)
    try:
        assert prepared.model is prepared.context.model
        assert prepared.trainable() == {name for name, _ in prepared.model.module.named_parameters()}
        sequences = prepared.sequences()
        assert len(sequences) == len(NUMBERS) - HELD_OUT
        assert [(list(each.ids), list(each.loss_mask)) for each in sequences] == prepared.tokens(prepared.model)
        before = {name: value.clone() for name, value in prepared.model.module.named_parameters()}
        prepared.take_steps(sequences, 1)
        assert any(not value.equal(before[name]) for name, value in prepared.model.module.named_parameters())
        assert prepared.directory.name == "prepared-0"
    finally:
        bench.closing.close()
