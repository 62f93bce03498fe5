"""Model component `vision-language`: what it is put together from, and what it says where that cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError, RecipeError
from lmflow.plugins import load_plugins
from lmflow_multimodal.component import CONFIG, VisionLanguage, hidden_size, image_token, load_language_model
from lmflow_multimodal.model import LANGUAGE, PROJECTOR, TOWER

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def request_with_plugins() -> LoadRequest:
    return LoadRequest(plugins=load_plugins())


@pytest.fixture
def load(model_directory: Path, tower_file: Path, request_with_plugins: LoadRequest) -> Load:
    """Loads a model around the tiny Llama with a tiny tower of random weights."""

    def make(**options: Any) -> Any:
        settings = {"language_model": str(model_directory), "tower": str(tower_file), "checkpoint": "random", **options}
        return VisionLanguage(**settings).load(request_with_plugins)

    return make


@pytest.fixture
def saved(load: Load, tmp_path: Path) -> Path:
    """Such a model, saved."""
    load(projector="linear").save(tmp_path / "saved")
    return tmp_path / "saved"


def weights(model: Any, part: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.module.state_dict().items() if part in name}


def test_it_is_a_language_model_with_two_parts_more(load: Load, model_directory: Path):
    model = load()
    assert model.source == str(model_directory)
    assert not model.module.training
    assert weights(model, "projector")
    assert model.tokenizer.convert_tokens_to_ids("<image>") == image_token(model.tokenizer)


def test_the_projector_s_first_weights_depend_on_no_seed_of_the_process(load: Load):
    torch.manual_seed(1)
    one = weights(load(), "projector")
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    other = weights(load(), "projector")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.rand(1), drawn), "and the process's own numbers go on as they would have"


@pytest.mark.parametrize(("projector", "layers"), [("linear", 1), ("mlp", 2)])
def test_projectors(projector: str, layers: int, load: Load):
    found = weights(load(projector=projector), "projector")
    assert sum(value.dim() == 2 for value in found.values()) == layers


def test_a_saved_model_is_recognised_and_comes_back(saved: Path, request_with_plugins: LoadRequest, load: Load):
    assert VisionLanguage.recognises(str(saved))
    assert not VisionLanguage.recognises(str(saved.parent))
    again = VisionLanguage(path=str(saved)).load(request_with_plugins)
    first = load(projector="linear")
    for name, value in weights(first, "projector").items():
        assert torch.equal(weights(again, "projector")[name], value)


def test_the_defaults_written_out_beside_a_path_are_no_mistake(saved: Path, request_with_plugins: LoadRequest):
    """A resolved recipe names every option, at its default where nobody said otherwise."""
    written = VisionLanguage(path=str(saved)).model_dump()
    assert VisionLanguage(**written).load(request_with_plugins).source == str(saved)


@pytest.mark.parametrize(
    "option", [{"projector": "linear"}, {"layer": -1}, {"tower": "ViT-B-32"}, {"pool": 2}], ids=str
)
def test_what_comes_with_a_saved_model_cannot_be_changed(
    option: dict[str, Any], saved: Path, request_with_plugins: LoadRequest
):
    [name] = option
    with pytest.raises(RecipeError, match=rf"model\.{name}: comes with the saved model at"):
        VisionLanguage(path=str(saved), **option).load(request_with_plugins)


def test_what_is_missing_is_told_together(request_with_plugins: LoadRequest):
    with pytest.raises(RecipeError) as caught:
        VisionLanguage().load(request_with_plugins)
    assert caught.value.problems == [
        f"model.{name}: missing; give it, or a saved model with model.path" for name in ("language_model", "tower")
    ]


def test_a_directory_of_something_else(tmp_path: Path, request_with_plugins: LoadRequest):
    with pytest.raises(LmflowError, match=rf"is no vision-language model: {CONFIG} is missing"):
        VisionLanguage(path=str(tmp_path)).load(request_with_plugins)


@pytest.mark.parametrize("part", [PROJECTOR, TOWER])
@pytest.mark.parametrize("damage", ["cut off", "empty", "of another module", "gone"])
def test_a_damaged_file_of_weights_is_named(part: str, damage: str, saved: Path, request_with_plugins: LoadRequest):
    file = saved / part
    if damage == "gone":
        file.unlink()
    elif damage == "of another module":
        save_file({"1.weight": torch.zeros(2, 2)}, file)
    else:
        file.write_bytes(file.read_bytes()[:-5] if damage == "cut off" else b"")
    with pytest.raises(
        LmflowError, match=rf"^model\.path: {re.escape(str(file))} is damaged: .+ Copy it again"
    ) as caught:
        VisionLanguage(path=str(saved)).load(request_with_plugins)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("not json", "Expecting value: line 1"),
        ("{}", "projector missing"),
        ("[]", "list indices must be"),
        ('{"projector": "linear"}', "tower missing"),
        ('{"projector": "linear", "tower": []}', "'list' object has no attribute"),
        ('{"projector": "linear", "tower": {"layer": -1}}', "tower: model_cfg, pool, preprocess_cfg missing"),
        ('{"projector": "cubic"}', "projector: expected one of linear, mlp"),
    ],
)
def test_a_damaged_configuration_is_named(text: str, why: str, saved: Path, request_with_plugins: LoadRequest):
    (saved / CONFIG).write_text(text)
    with pytest.raises(LmflowError, match=rf"^model\.path: .*{re.escape(CONFIG)} is damaged: {why}"):
        VisionLanguage(path=str(saved)).load(request_with_plugins)


def test_a_directory_without_its_language_model(saved: Path, request_with_plugins: LoadRequest):
    (saved / LANGUAGE).rename(saved / "elsewhere")
    with pytest.raises(RecipeError, match=rf"{saved / LANGUAGE}"):
        VisionLanguage(path=str(saved)).load(request_with_plugins)


def test_a_language_model_is_found_as_any_model_is(request_with_plugins: LoadRequest, model_directory: Path):
    found = load_language_model(str(model_directory), request_with_plugins)
    assert hidden_size(found) == found.module.config.hidden_size == 32  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="no model is called dmo; did you mean demo"):
        load_language_model("dmo", request_with_plugins)


def test_without_plugins_there_is_nothing_to_find_it_among(model_directory: Path):
    with pytest.raises(LmflowError, match=r"LoadRequest.plugins holds none"):
        load_language_model(str(model_directory), LoadRequest())


def test_the_image_token_is_added_once(make_tokenizer: Callable[..., Any]):
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    first = image_token(tokenizer)
    assert image_token(tokenizer) == first == size
    assert len(tokenizer) == size + 1
    assert tokenizer("a<image>b")["input_ids"].count(first) == 1


def test_what_only_a_run_knows_is_no_part_of_what_is_saved(saved: Path):
    config = json.loads((saved / CONFIG).read_text())
    assert config["projector"] == "linear"
    assert not {"feature_cache", "train_projector", "projector_learning_rate"} & config.keys()
