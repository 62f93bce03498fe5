"""The recipe: layers, mistakes, origins, and the file that repeats it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lmflow.errors import RecipeError
from lmflow.plugins import RECIPE_SLOTS, Plugins, load_plugins
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import model_from_reference, resolve
from lmflow.recipe.schema import schema
from lmflow.testing.runs import as_options


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def problems(plugins: Plugins, file: Path | None = None, **values: str) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(plugins, file, as_options(**values))
    return str(caught.value)


def test_defaults(plugins):
    recipe = resolve(plugins).recipe
    parts = {slot: getattr(recipe, "format" if slot == "data" else slot) for slot in RECIPE_SLOTS}
    names = {slot: part and part.name for slot, part in parts.items()}
    assert names == {
        "model": "demo",
        "context": None,
        "data": "demo",
        "attention": None,
        "tuner": "full",
        "optimizer": "adamw",
        "schedule": "cosine",
        "aligner": "sft",
        "inferencer": "hf",
        "reward": "demo",
    }


def test_defaults_give_way_to_the_file_and_the_file_to_options(plugins, write):
    file = write("tuner: {name: lora, rank: 4, alpha: 2}\ntraining:\n  learning_rate: 1e-4\n")
    resolved = resolve(plugins, file, as_options(tuner__rank="32"))
    assert resolved.recipe.tuner.model_dump()["rank"] == 32
    assert resolved.recipe.tuner.model_dump()["alpha"] == 2
    assert resolved.recipe.training.learning_rate == 1e-4
    origins = resolved.origins
    assert str(origins["tuner.rank"]) == "option --tuner.rank"
    assert str(origins["tuner.alpha"]) == f"file {file}:1"
    assert str(origins["training.learning_rate"]) == f"file {file}:3"
    assert str(origins["tuner.dropout"]) == "default"


def test_components_prefer_training_defaults(plugins):
    resolved = resolve(plugins, None, as_options(aligner="raft"))
    assert resolved.recipe.training.learning_rate == 1e-3
    assert str(resolved.origins["training.learning_rate"]) == "plugin aligner raft"
    assert (resolved.recipe.schedule.name, resolved.recipe.schedule.warmup) == ("constant", 0)
    assert str(resolved.origins["schedule.name"]) == str(resolved.origins["schedule.warmup"]) == "plugin aligner raft"
    mine = resolve(plugins, None, as_options(aligner="raft", schedule="linear", schedule__warmup="0.5")).recipe.schedule
    assert (mine.name, mine.warmup) == ("linear", 0.5)


def test_a_path_means_own_model_and_data(plugins):
    recipe = resolve(plugins, None, as_options(model__path="x/y", data__path="z.jsonl")).recipe
    assert (recipe.model.name, recipe.format, recipe.reward) == ("pretrained", None, None)


def test_every_mistake_at_once_with_its_place(plugins, write):
    file = write("tuner:\n  name: lora\n  rnak: 4\nalinger: raft\ntraining:\n  batch_size: 0\n  result: bets\n")
    text = problems(plugins, file, training__learning_rate="fast", aligner__epocs="2", inferencer="hff")
    lines = text.splitlines()
    for expected in (
        f"{file}:3: tuner.rnak: unknown option; did you mean tuner.rank?",
        f"{file}:4: alinger: unknown section; did you mean aligner?",
        f"{file}:6: training.batch_size: must be greater than 0, got 0",
        "--training.learning_rate: expected a number, got 'fast'",
    ):
        assert expected in lines, text
    assert any(line.startswith("--inferencer: no inferencer is called hff; did you mean hf?") for line in lines), text
    assert "'bets'; did you mean best?" in text
    assert "--aligner.epocs: unknown option" in text


def test_an_option_of_a_component_not_chosen(plugins):
    assert "tuner.rank is an option of tuner lora, not chosen" in problems(plugins, tuner__rank="4")


@pytest.mark.parametrize("value", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001"])
def test_numbers_as_people_write_them(plugins, write, value: str):
    assert resolve(plugins, write(f"training: {{learning_rate: {value}}}\n")).recipe.training.learning_rate == 1e-4


def test_yaml_words_stay_words(plugins, write):
    recipe = resolve(plugins, write("tuner: {name: lora, modules_to_save: [on, yes, off, no, 2024-01-01]}\n")).recipe
    assert recipe.tuner.model_dump()["modules_to_save"] == ["on", "yes", "off", "no", "2024-01-01"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tuner: lora\ntuner: full\n", ":2: tuner: given twice (first in line 1)"),
        ("tuner:\n  name: lora\n  rank: 1\n  rank: 2\n", ":4: tuner.rank: given twice (first in line 3)"),
        ("tuner: [lora\n", ":2: not valid YAML"),
        ("tuner:\n\tname: lora\n", ":2: not valid YAML"),
        ("- tuner\n", ":1: expected sections"),
        ("training: 3\n", ":1: training: expected options"),
        ("tuner: 3\n", "expected a component's name, got 3"),
    ],
)
def test_malformed_files(plugins, write, text: str, expected: str):
    assert expected in problems(plugins, write(text))


def test_a_missing_file(plugins, tmp_path):
    assert "there is no such recipe file" in problems(plugins, tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        ({"tuner__target_modules": "q_proj,v_proj"}, "target_modules", ["q_proj", "v_proj"]),
        ({"tuner__target_modules": "[q_proj, k_proj]"}, "target_modules", ["q_proj", "k_proj"]),
        ({"tuner__modules_to_save": "a,b"}, "modules_to_save", ["a", "b"]),
        ({"tuner__dora": "true"}, "dora", True),
        ({"tuner__rank": "16"}, "rank", 16),
    ],
)
def test_option_texts(plugins, values: dict[str, str], field: str, expected: Any):
    recipe = resolve(plugins, None, as_options(tuner="lora", **values)).recipe
    assert recipe.tuner.model_dump()[field] == expected


def test_none_and_paths_that_look_like_numbers(plugins):
    recipe = resolve(
        plugins, None, as_options(training__max_grad_norm="none", data__path="2024", data__validation="0.2")
    ).recipe
    assert recipe.training.max_grad_norm is None
    assert recipe.data.path == "2024"
    assert recipe.data.validation == 0.2


def test_an_option_given_twice(plugins):
    twice = [*as_options(tuner="lora"), *as_options(tuner="full")]
    with pytest.raises(RecipeError, match="--tuner: given twice"):
        resolve(plugins, None, twice)


def test_a_need_that_is_not_met(plugins):
    assert "aligner raft needs a reward" in problems(plugins, aligner="raft", data__path="x.jsonl")
    assert "aligner raft needs a reward" in problems(plugins, aligner="raft", reward="none")


def test_shorthand(plugins):
    recipe = resolve(plugins, None, as_options(reward="python:my.module:score")).recipe
    assert recipe.reward.model_dump() == {"function": "my.module:score"}
    assert "given twice" in problems(plugins, reward="python:a:b", reward__function="c:d")
    assert "takes no value" in problems(plugins, tuner="lora:4")


def test_model_references(plugins, model_directory: Path, tmp_path: Path):
    assert model_from_reference(plugins, "demo").name == "demo"
    assert model_from_reference(plugins, str(model_directory)).model_dump()["path"] == str(model_directory)
    assert model_from_reference(plugins, "someone/some-model").model_dump()["path"] == "someone/some-model"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert model_from_reference(plugins, str(tmp_path / "adapter")).name == "adapter"
    (tmp_path / "run.json").write_text('{"status": "completed", "result": "adapter"}')
    assert model_from_reference(plugins, str(tmp_path)).model_dump()["path"] == str(tmp_path / "adapter")
    with pytest.raises(RecipeError, match="no model is called dmo; did you mean demo"):
        model_from_reference(plugins, "dmo")
    (tmp_path / "run.json").write_text('{"status": "failed"}')
    with pytest.raises(RecipeError, match=r"no result yet \(status: failed\).*--resume"):
        model_from_reference(plugins, str(tmp_path))


def combinations() -> list[dict[str, str]]:
    required = {
        "model": {"pretrained": {"model__path": "x/y"}, "adapter": {"model__path": "x/y"}},
        "reward": {"python": {"reward__function": "a:b"}, "classifier": {"reward__path": "x"}},
        "context": {name: {"context__factor": "4"} for name in load_plugins().offers("context")},
    }
    found = []
    plugins = load_plugins()
    for slot in RECIPE_SLOTS:
        for name, offers in plugins.offers(slot).items():
            named = {slot: name} | {need.slot: need.names[0] for need in offers[0].component.needs if need.names}
            further = [required.get(each, {}).get(chosen, {}) for each, chosen in named.items()]
            found.append({key: value for part in (named, *further) for key, value in part.items()})
    return found


@pytest.mark.parametrize("values", combinations(), ids=str)
def test_a_written_recipe_is_a_fixed_point(plugins, write, values: dict[str, str]):
    """Resolving what was written gives the same text, for every component installed."""
    component = plugins.offers("model")[values["model"]][0].component if "model" in values else None
    if component and component.missing():
        pytest.skip(f"model {values['model']} needs a package that is not installed")
    text = dump(resolve(plugins, None, as_options(**values)).recipe)
    assert dump(resolve(plugins, write(text)).recipe) == text


def test_schema_describes_every_component(plugins):
    described = schema(plugins)
    assert described["properties"].keys() == {*RECIPE_SLOTS, "training", "launch", "trackers", "plugins", "stages"}
    for slot in RECIPE_SLOTS:
        named = [option["properties"]["name"] for option in described["properties"][slot]["anyOf"][1:]]
        if slot == "data":  # it may be left to be recognised, and has options all the same
            assert all(each["enum"][1:] == [None] for each in named)
            assert {each["enum"][0] for each in named} == set(plugins.offers(slot))
        else:
            assert {each["const"] for each in named} == set(plugins.offers(slot))
    written = yaml.safe_load(dump(resolve(plugins).recipe))
    assert written["training"].keys() == described["properties"]["training"]["properties"].keys()
