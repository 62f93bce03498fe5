"""Recipes of several stages: what each comes to, what options do to them, and every mistake before any begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from lmflow.components import Aligner, Model
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins, load_plugins
from lmflow.plugins.in_process import load_plugins_with
from lmflow.recipe.recipe import dump
from lmflow.recipe.settings import Origin, Setting
from lmflow.recipe.stages import StagedRecipe, dump_stages, resolve_recipe

Write = Callable[[str], Path]

THREE = """
training: {seed: 3, batch_size: 4}
tuner: {name: lora, rank: 4}
stages:
  sft:
    training: {batch_size: 2}
  full:
    model: stage:sft
    tuner: full
  rl:
    model: {name: stage:full, quantization: null}
    tuner: {name: lora, alpha: 8}
    aligner: {name: raft, iterations: 2}
"""


class Compared(Aligner):
    """Compare with another model."""

    name = "compared"
    reference: str | None = Field(None, description="The other model.")

    def models(self) -> dict[str, str | Model]:
        """The reference."""
        return {"reference": self.reference} if self.reference else {}

    def align(self, context: Any) -> None:
        """Never called here."""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins_with([Compared])


def option(path: str, value: str) -> Setting:
    return Setting(path, value, Origin("option", f"--{path}"))


def resolved(plugins: Plugins, file: Path, *options: Setting) -> StagedRecipe:
    found = resolve_recipe(plugins, file, options)
    assert isinstance(found, StagedRecipe)
    return found


def problems_of(plugins: Plugins, file: Path, *options: Setting) -> Sequence[str]:
    with pytest.raises(RecipeError) as caught:
        resolve_recipe(plugins, file, options)
    return [problem.replace(str(file), "r.yaml") for problem in caught.value.problems]


def test_a_recipe_without_stages_is_what_it_was(plugins: Plugins, write: Write):
    found = resolve_recipe(plugins, write("tuner: lora\n"))
    assert not isinstance(found, StagedRecipe)
    assert found.recipe.tuner.name == "lora"


def test_sections_beside_stages_are_defaults_of_each(plugins: Plugins, write: Write):
    sft, full, rl = (stage.resolved.recipe for stage in resolved(plugins, write(THREE)).stages)
    assert [each.training.seed for each in (sft, full, rl)] == [3, 3, 3]
    assert [each.training.batch_size for each in (sft, full, rl)] == [2, 4, 4]
    assert [each.tuner.name for each in (sft, full, rl)] == ["lora", "full", "lora"]
    assert (sft.tuner.rank, rl.tuner.rank, rl.tuner.alpha) == (4, 4, 8)


def test_another_component_leaves_out_the_defaults_options_but_plain_ones(plugins: Plugins, write: Write):
    text = (
        "data: {name: prompt, path: a.jsonl, max_length: 9}\ntrackers: {tensorboard: null}\n"
        "stages:\n  a: {}\n  b: {data: {name: text_only}, trackers: null}\n"
    )
    a, b = (stage.resolved.recipe for stage in resolved(plugins, write(text)).stages)
    assert (b.format.name, b.data.path, b.data.max_length) == ("text_only", "a.jsonl", 9)
    assert ([each.name for each in a.trackers], list(b.trackers)) == (["tensorboard"], [])


def test_what_is_written_keeps_references_and_resolves_to_the_same(plugins: Plugins, write: Write):
    text = dump_stages(resolved(plugins, write(THREE)))
    sections = yaml.safe_load(text)["stages"]
    assert list(sections) == ["sft", "full", "rl"]
    assert sections["rl"]["model"] == {"name": "stage:full", "quantization": None, "device_map": None}
    assert sections["sft"]["training"]["max_steps"] is None, "every value is explicit"
    assert dump_stages(resolved(plugins, write(text))) == text


def test_until_there_are_results_the_first_model_stands_for_them(plugins: Plugins, write: Write):
    text = (
        "stages:\n  a: {model: 'pretrained:x/y'}\n  b: {model: stage:a}\n"
        "  c: {model: stage:b, aligner: {name: compared, reference: stage:a}, reward: 'classifier:stage:b'}\n"
    )
    _, b, c = resolved(plugins, write(text)).stages
    assert b.planned.recipe.model.path == c.planned.recipe.model.path == "x/y"
    assert c.planned.recipe.aligner.reference == "pretrained:x/y"
    assert c.planned.recipe.reward.path == "pretrained:x/y"
    assert c.as_dict()["aligner"]["reference"] == "stage:a"
    assert c.as_dict()["reward"]["path"] == "stage:b"
    assert c.origins["model.name"].place.endswith(":4")


def test_a_stage_that_begins_has_the_results_in_their_place(plugins: Plugins, write: Write, model_directory: Path):
    text = (
        "stages:\n  a: {}\n  b: {model: stage:a, aligner: {name: compared, reference: stage:a}, "
        "reward: 'classifier:stage:a', tuner: lora}\n"
    )
    _, b = resolved(plugins, write(text)).stages
    recipe = b.started(plugins, lambda name: {"a": str(model_directory)}[name]).recipe
    assert (recipe.model.name, recipe.model.path) == ("pretrained", str(model_directory))
    assert recipe.aligner.reference == recipe.reward.path == str(model_directory)
    assert "stage:" not in dump(recipe)


# Options


def test_an_option_is_for_every_stage_and_one_below_its_name_for_that_alone(plugins: Plugins, write: Write):
    options = [option("training.max_steps", "7"), option("stages.rl.training.max_steps", "2")]
    options.append(option("stages.rl.aligner.iterations", "5"))
    sft, full, rl = (stage.resolved.recipe for stage in resolved(plugins, write(THREE), *options).stages)
    assert [each.training.max_steps for each in (sft, full, rl)] == [7, 7, 2]
    assert rl.aligner.iterations == 5


def test_another_model_is_what_the_first_stage_starts_from(plugins: Plugins, write: Write):
    options = [option("model", "pretrained"), option("model.path", "x/y")]
    sft, full, rl = resolved(plugins, write(THREE), *options).stages
    assert [stage.as_dict()["model"]["name"] for stage in (sft, full, rl)] == ["pretrained", "stage:sft", "stage:full"]
    assert rl.planned.recipe.model.path == "x/y"


def test_a_reference_elsewhere_stays_too(plugins: Plugins, write: Write):
    text = "stages: {a: {reward: demo}, b: {reward: 'classifier:stage:a'}}"
    a, b = resolved(plugins, write(text), option("reward", "python:m:f")).stages
    assert (a.resolved.recipe.reward.name, b.resolved.recipe.reward.name) == ("python", "classifier")


# Mistakes


def test_a_stage_takes_options_and_no_value(plugins: Plugins, write: Write):
    found = problems_of(plugins, write("stages: {sft: {}}\n"), option("stages.sft", "5"))
    assert found == ["--stages.sft: expected an option of that stage, as in --stages.sft.tuner lora"]


def test_all_mistakes_are_told_at_once_each_with_its_stage_and_line(plugins: Plugins, write: Write):
    text = (
        "training: {lerning_rate: 1}\nstages:\n  sft:\n    tuner: {name: lora, rnak: 4}\n  rl:\n"
        "    model: stage:stf\n    aligner: ratf\n  last:\n    model: stage:last\n    stages: {a: {}}\n"
    )
    found = problems_of(plugins, write(text), option("stages.rll.training.seed", "1"))
    assert found[0] == "--stages.rll.training.seed: there is no stage 'rll'; did you mean rl?"
    assert found[1] == "r.yaml:1: training.lerning_rate: unknown option; did you mean training.learning_rate?"
    assert found.count(found[1]) == 1, "what is wrong in every stage is told once"
    assert "stage sft: r.yaml:4: tuner.rnak: unknown option; did you mean tuner.rank?" in found
    assert "stage rl: r.yaml:6: model.name: stage:stf: there is no stage 'stf'; did you mean sft?" in found
    assert any(line.startswith("stage rl: r.yaml:7: aligner.name: ") for line in found)
    assert any(line.startswith("stage last: r.yaml:9: model.name: stage:last: last is this stage") for line in found)
    assert any(line.startswith("stage last: r.yaml:10: stages: unknown section") for line in found)


def test_an_option_of_some_stages_says_how_to_give_it_to_one(plugins: Plugins, write: Write):
    found = problems_of(plugins, write(THREE), option("aligner.iterations", "1"))
    assert len(found) == 2
    for name, line in zip(("sft", "full"), found):
        assert line.startswith(f"stage {name}: --aligner.iterations: unknown option")
        assert line.endswith("; for one stage alone: --stages.rl.aligner.iterations")


def test_a_model_that_an_aligner_uses_is_looked_for_before_any_stage_begins(plugins: Plugins, write: Write):
    text = "stages: {a: {}, b: {aligner: {name: compared, reference: nothing}}}"
    [problem] = problems_of(plugins, write(text))
    assert problem.startswith("stage b: the reference model of aligner compared: ")


def test_stages_are_none_of_a_recipe_that_has_none(plugins: Plugins, write: Write):
    [problem] = problems_of(plugins, write("tuner: lora\n"), option("stages.rl.training.seed", "1"))
    assert problem.startswith("--stages.rl.training.seed: unknown section; stages stand at the top of a recipe file")


def test_what_components_need_is_asked_of_the_first_model(write: Write):
    text = "stages: {a: {model: {name: vision-language, tower: t.json, language_model: demo}, tuner: projector}, "
    text += "b: {model: stage:a, tuner: projector}, c: {model: demo, tuner: projector}}"
    [problem] = problems_of(load_plugins(), write(text))
    assert problem.startswith("stage c: tuner projector needs a model (vision-language)")
