"""Other defaults that tuners, optimizers and aligners prefer, by dotted path: later slots win, and the user over all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from lmflow.components import Aligner, Optimizer, Schedule, Tuner
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.choice import Choice
from lmflow.recipe.preferences import faulty_preferences
from lmflow.recipe.recipe import ResolvedRecipe, dump
from lmflow.recipe.resolve import CHOOSING_ORDER, PREFERRING, resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.testing.runs import as_options, plugins_with


class PickyTuner(Tuner):
    """Prefer a rate, an optimizer and its decay."""

    name = "picky"
    preferred: ClassVar = {
        "training.learning_rate": 0.5,
        "training.batch_size": 3,
        "optimizer.name": "slow",
        "optimizer.weight_decay": 0.25,
        "schedule.warmup": 7,
    }

    def prepare(self, model: Any) -> Any:
        """Nothing."""
        return model


class SlowOptimizer(Optimizer):
    """Prefer a rate and a schedule."""

    name = "slow"
    memory: float = Field(0.5, description="How much it remembers.")
    preferred: ClassVar = {"training.learning_rate": 0.25, "schedule.name": "flat", "schedule.floor": 0.125}

    def build(self, groups: Sequence[dict[str, Any]]) -> Any:
        """Nothing."""
        return None


class FlatSchedule(Schedule):
    """Stay where it is."""

    name = "flat"
    floor: float = Field(0.0, description="Lowest rate.")

    def factor(self, step: int, total: int) -> float:
        """Always the same."""
        return 1.0


class PickyAligner(Aligner):
    """Prefer a rate and a length of its own."""

    name = "picky"
    preferred: ClassVar = {"training.learning_rate": 0.125, "optimizer.memory": 0.75}

    def align(self, context: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return plugins_with(PickyTuner, SlowOptimizer, FlatSchedule, PickyAligner)


def resolved(plugins: Plugins, file: Path | None = None, **values: str) -> ResolvedRecipe:
    return resolve(plugins, file, as_options(**values))


def test_the_order_in_which_they_count():
    assert PREFERRING == ("tuner", "optimizer", "aligner")


def test_a_tuner_s_defaults_reach_every_section(plugins: Plugins):
    found = resolved(plugins, tuner="picky", optimizer="adamw")
    assert (found.recipe.training.learning_rate, found.recipe.training.batch_size) == (0.5, 3)
    assert (found.recipe.optimizer.name, found.recipe.optimizer.weight_decay) == ("adamw", 0.25)
    assert found.recipe.schedule.warmup == 7
    assert str(found.origins["schedule.warmup"]) == "plugin tuner picky"
    assert str(found.origins["training.batch_size"]) == "plugin tuner picky"
    assert str(found.origins["training.epochs"]) == "default"


def test_a_preferred_component_prefers_in_its_turn_and_the_later_slot_wins(plugins: Plugins):
    found = resolved(plugins, tuner="picky")
    assert found.recipe.optimizer.name == "slow"
    assert (found.recipe.schedule.name, found.recipe.schedule.model_dump()["floor"]) == ("flat", 0.125)
    assert found.recipe.training.learning_rate == 0.25, "the optimizer's, over the tuner's"
    assert str(found.origins["training.learning_rate"]) == "plugin optimizer slow"
    assert str(found.origins["optimizer.name"]) == "plugin tuner picky"
    both = resolved(plugins, tuner="picky", aligner="picky")
    assert both.recipe.training.learning_rate == 0.125, "the aligner's, over all"
    assert both.recipe.optimizer.model_dump()["memory"] == 0.75


def test_what_the_user_writes_wins_from_options_and_from_a_file(plugins: Plugins, tmp_path: Path):
    found = resolved(plugins, tuner="picky", aligner="picky", training__learning_rate="0.01", schedule="cosine")
    assert found.recipe.training.learning_rate == 0.01
    assert found.recipe.schedule.name == "cosine"
    file = tmp_path / "recipe.yaml"
    file.write_text("tuner: picky\naligner: picky\ntraining: {learning_rate: 0.02}\noptimizer: {weight_decay: 0}\n")
    found = resolved(plugins, file)
    assert found.recipe.training.learning_rate == 0.02
    assert (found.recipe.optimizer.name, found.recipe.optimizer.weight_decay) == ("slow", 0)
    assert str(found.origins["optimizer.weight_decay"]) == f"file {file}:4"
    assert resolved(plugins, file, training__learning_rate="0.03").recipe.training.learning_rate == 0.03


def test_components_named_in_yaml_prefer_as_those_of_options_do(plugins: Plugins, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("tuner: {name: picky}\naligner: {name: picky}\n")
    by_file, by_options = resolved(plugins, file).recipe, resolved(plugins, tuner="picky", aligner="picky").recipe
    assert dump(by_file) == dump(by_options)


def test_a_field_that_the_chosen_component_lacks_means_nothing(plugins: Plugins):
    """The user took another schedule, which has no floor: that is no mistake of theirs."""
    found = resolved(plugins, optimizer="slow", schedule="constant")
    assert found.recipe.schedule.name == "constant"


def test_the_written_recipe_has_what_was_preferred_and_repeats_it(plugins: Plugins, tmp_path: Path):
    text = dump(resolved(plugins, tuner="picky", aligner="picky").recipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    again = resolved(plugins, file)
    assert dump(again.recipe) == text
    assert again.origins["training.learning_rate"].kind == "file"


def test_a_value_that_its_field_refuses_is_told_with_its_path(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PickyTuner, "preferred", {"training.batch_size": -1})
    with pytest.raises(RecipeError, match=r"training\.batch_size: must be greater than 0, got -1"):
        resolved(plugins, tuner="picky")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("training.learning_rte", "there is no such option; did you mean training.learning_rate?"),
        ("trainig.learning_rate", "there is no such section; did you mean training?"),
        ("schedule.wramup", "there is no such option; did you mean schedule.warmup?"),
        ("optimizer.zzz", "there is no such option"),
        ("learning_rate", "expected section.option, such as training.learning_rate"),
        ("tuner.rank", "the defaults of its own options are those of its fields"),
        ("launch.processes", "there is no such section"),
        ("reward.name", "what fills the slot reward is chosen before"),
    ],
)
def test_a_path_that_means_nothing_is_an_error_that_names_the_component(
    path: str, fault: str, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(PickyTuner, "preferred", {path: 1})
    with pytest.raises(RecipeError) as caught:
        resolved(plugins, tuner="picky")
    [line] = caught.value.problems
    assert line.startswith("tuner picky (")
    assert line.endswith(f"prefers {path}: {fault}")


def test_a_component_cannot_be_preferred_where_one_is_chosen_already(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PickyAligner, "preferred", {"tuner.name": "picky"})
    with pytest.raises(RecipeError, match=r"prefers tuner\.name: what fills the slot tuner is chosen before"):
        resolved(plugins, aligner="picky")


def test_preferences_of_what_is_not_chosen_are_not_looked_at(plugins: Plugins, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PickyTuner, "preferred", {"no.such": 1})
    assert resolved(plugins, tuner="full").recipe.tuner.name == "full"


def test_what_installed_components_prefer_is_sound():
    plugins = load_plugins()
    for slot in PREFERRING:
        for component in plugins.classes(slot):
            setting = Setting(f"{slot}.name", component.name, Origin("default"))
            chosen = {slot: Choice(slot, component, component.name, setting)}
            assert list(faulty_preferences(chosen, PREFERRING, CHOOSING_ORDER, plugins)) == []
