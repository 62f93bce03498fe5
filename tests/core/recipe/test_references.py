"""References from a stage to what an earlier one ends with, and what stands for it meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lmflow.plugins import load_plugins
from lmflow.recipe.references import (
    faulty_references,
    reference_in,
    reference_to,
    references_in,
    start_of,
    with_results,
    with_stand_ins,
    with_start,
)
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting

FILE = Origin("file", "r.yaml:3")


def made(**values: Any) -> dict[str, Setting]:
    named = {path.replace("__", "."): value for path, value in values.items()}
    return {path: Setting(path, value, FILE) for path, value in named.items()}


def values(settings: dict[str, Setting]) -> dict[str, Any]:
    return {path: setting.value for path, setting in settings.items()}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model.name", "stage:sft", "sft"),
        ("model.path", "stage:sft", "sft"),
        ("aligner.reference", "stage:sft", "sft"),
        ("reward.name", "classifier:stage:reward", "reward"),
        ("inferencer.name", "speculative:stage:draft", "draft"),
        ("model.name", "stage:", ""),
        ("aligner.reference", "classifier:stage:sft", None),
        ("model.name", "backstage:sft", None),
        ("model.name", "stages/sft", None),
        ("data.path", "stage:sft", None),
        ("training.device", "stage:sft", None),
        ("aligner.epochs", 3, None),
    ],
)
def test_a_reference_is_the_whole_of_a_component_s_option_or_the_end_of_its_name(
    path: str, value: Any, expected: str | None
):
    assert reference_in(Setting(path, value, FILE)) == expected


def test_a_stage_starts_from_a_result_where_the_model_names_it_and_no_component():
    assert start_of(made(model__name="stage:sft")) == "sft"
    assert start_of(made(model__name="vision-language:stage:sft")) is None
    assert start_of(made(model__path="stage:sft")) is None
    assert start_of({}) is None


def test_results_stand_in_the_place_of_all_references():
    settings = made(model__name="stage:sft", reward__name="classifier:stage:score", tuner__name="lora")
    assert references_in(settings) == {"model.name": "sft", "reward.name": "score"}
    found = with_results(settings, lambda name: f"out/{name}/model")
    assert values(found) == {
        "model.name": "out/sft/model",
        "reward.name": "classifier:out/score/model",
        "tuner.name": "lora",
    }
    assert all(setting.origin == FILE for setting in found.values())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("stage:sftt", "r.yaml:3: model.name: stage:sftt: there is no stage 'sftt'; did you mean sft?"),
        ("stage:", "r.yaml:3: model.name: stage:: there is no stage ''"),
        ("stage:rl", "r.yaml:3: model.name: stage:rl: rl is this stage itself; only the result of an earlier"),
        ("stage:last", "r.yaml:3: model.name: stage:last: last comes later; only the result of an earlier stage can"),
    ],
)
def test_only_earlier_stages_can_be_named(value: str, expected: str):
    [problem] = faulty_references("rl", made(model__name=value), ["sft", "rl", "last"])
    assert problem.startswith(expected)


def test_options_of_one_component_need_its_name():
    settings = made(model__name="stage:sft", model__quantization="nf4", model__revision="x")
    [problem] = faulty_references("rl", settings, ["sft", "rl"])
    assert problem.startswith("r.yaml:3: model.revision: the result of a stage has the options of every model")
    assert problem.endswith("`model: {name: pretrained, path: stage:sft}`")
    named = made(model__name="pretrained", model__path="stage:sft", model__revision="x")
    assert list(faulty_references("rl", named, ["sft", "rl"])) == []


def test_the_model_of_the_earlier_stage_stands_for_its_result():
    earlier = made(model__name="vision-language", model__tower="t.json", model__quantization="nf4", tuner__name="lora")
    settings = made(model__name="stage:sft", model__device_map=None, tuner__name="full")
    assert values(with_start(settings, {"sft": earlier})) == {
        "model.name": "vision-language",
        "model.tower": "t.json",
        "model.device_map": None,
        "tuner.name": "full",
    }
    assert values(with_start(settings, {"sft": {}})) == {"model.device_map": None, "tuner.name": "full"}


def test_the_same_component_keeps_the_options_set_here():
    earlier = made(model__name="vision-language", model__tower="t.json", model__train_projector=True)
    settings = made(model__name="vision-language", model__path="stage:sft", model__train_projector=False)
    assert values(with_stand_ins(settings, {"sft": earlier}, {})) == {
        "model.name": "vision-language",
        "model.tower": "t.json",
        "model.train_projector": False,
    }


def test_elsewhere_stands_what_names_the_model_that_the_stage_starts_from():
    recipe = resolve(load_plugins()).recipe
    assert reference_to(recipe) == "demo"
    pretrained = resolve(
        load_plugins(), options=[Setting("model", "pretrained:a/b", Origin("option", "--model"))]
    ).recipe
    assert reference_to(pretrained) == "pretrained:a/b"
    assert reference_to(replace(pretrained, names={"model": "lmflow-core:pretrained"})) == "lmflow-core:pretrained:a/b"
    settings = made(aligner__reference="stage:sft", reward__name="classifier:stage:sft")
    found = with_stand_ins(settings, {"sft": {}}, {"sft": recipe})
    assert values(found) == {"aligner.reference": "demo", "reward.name": "classifier:demo"}
    assert with_stand_ins(settings, {}, {}) == settings, "what could not be resolved leaves the reference"
