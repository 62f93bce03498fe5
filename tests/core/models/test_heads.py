"""Heads beside a model: built from the seed, written and read to the bit, and refused where they cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.components import Head, LoadRequest
from lmflow.errors import LmflowError
from lmflow.models.heads import (
    CONFIG,
    FOLDER,
    HEADS,
    HeadLayers,
    head_names,
    heads_apart,
    heads_of,
    hidden_size,
    is_head,
    new_head,
    read_heads,
    write_heads,
)
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow.testing.tiny import tiny_model

WANTED = {"value": Head(), "reward": Head(outputs=2, hidden=(8, 4), bias=False)}


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model().with_heads(WANTED, seed=7)


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_head_has_the_layers_it_says():
    layers = HeadLayers(WANTED["reward"], 32)
    assert [tuple(each.shape) for each in layers.parameters()] == [(8, 32), (4, 8), (2, 4)]
    assert [type(each) for each in layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [tuple(each.shape) for each in HeadLayers(Head(), 32).parameters()] == [(1, 32), (1,)]
    hidden = torch.randn(5, 32)
    by_hand = hidden @ layers[0].weight.T
    by_hand = by_hand.tanh() @ layers[2].weight.T
    assert torch.allclose(layers(hidden), by_hand.tanh() @ layers[4].weight.T)


def test_it_starts_from_its_name_and_the_seed_alone(model: LanguageModel):
    torch.manual_seed(99)
    torch.rand(3)
    again = tiny_model("gpt2").with_heads({"reward": WANTED["reward"]}, seed=7)
    assert same(again.heads["reward"], model.heads["reward"])
    assert not same(new_head("reward", WANTED["reward"], 32, 8), model.heads["reward"])
    assert not same(new_head("other", Head(), 32, 7), model.heads["value"])


def test_making_one_leaves_the_random_numbers_of_the_run_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    new_head("value", Head(hidden=(4,)), 32, 0)
    assert torch.equal(torch.rand(2), expected)


def test_first_weights_have_the_deviation_they_should_or_give_nothing():
    wide = new_head("value", Head(outputs=64), 1023, 0)
    assert float(wide[0].weight.detach().std()) == pytest.approx(1 / 32, rel=0.02)
    assert not wide[0].bias.any()
    zero = new_head("value", Head(hidden=(16,), starts_at_zero=True), 32, 0)
    assert zero[0].weight.any()
    assert not zero(torch.randn(9, 32)).any()


def test_they_are_a_part_of_the_module_and_train(model: LanguageModel):
    names = {name for name, each in model.module.named_parameters() if is_head(name) and each.requires_grad}
    assert names == {
        f"{HEADS}.{name}" for name in ("value.0.weight", "value.0.bias", *(f"reward.{i}.weight" for i in (0, 2, 4)))
    }
    assert heads_of(["lm_head.weight", *sorted(names)]) == ["reward", "value"]
    assert model.heads["value"] is model.module.get_submodule(f"{HEADS}.value")
    assert hidden_size(model.module) == 32


def test_another_module_brings_its_own(model: LanguageModel):
    """As where processes have parts of the weights, and a copy is put together to be saved."""
    other = tiny_model().with_heads(WANTED, seed=8)
    assert model.with_module(other.module).heads["value"] is other.heads["value"]
    assert model.with_module(tiny_model().module).heads["value"] is model.heads["value"]


def test_what_is_saved_is_the_model_as_other_tools_know_it_and_the_heads_beside(model: LanguageModel, tmp_path: Path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model.save(tmp_path)
    assert not [
        name for name in load_file(tmp_path / "model.safetensors") if "head" in name and name != "lm_head.weight"
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # some tools load every one of them
    _, about = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(about.values())
    shapes = json.loads((tmp_path / FOLDER / CONFIG).read_text())
    assert shapes["reward"] == {"hidden_size": 32, "outputs": 2, "hidden": [8, 4], "bias": False}
    assert hasattr(model.module, HEADS)  # it has them still

    loaded = Pretrained(path=str(tmp_path)).load(LoadRequest())
    assert all(same(loaded.heads[name], model.heads[name]) for name in WANTED)
    assert not hasattr(loaded.module, HEADS)
    assert not any(each.requires_grad for layers in loaded.heads.values() for each in layers.parameters())
    assert head_names(tmp_path) == ["reward", "value"]


def test_weights_in_bf16_leave_heads_exact(model: LanguageModel, tmp_path: Path):
    model.save(tmp_path)
    loaded = Pretrained(path=str(tmp_path)).load(LoadRequest(dtype="bfloat16"))
    assert next(loaded.module.parameters()).dtype == torch.bfloat16
    assert same(loaded.heads["value"], model.heads["value"])


def test_one_that_was_saved_is_trained_further_and_the_rest_left_out(model: LanguageModel, tmp_path: Path):
    model.save(tmp_path)
    loaded = Pretrained(path=str(tmp_path)).load(LoadRequest())
    further = loaded.with_heads({"value": Head(starts_at_zero=True)}, seed=3)
    assert same(further.heads["value"], model.heads["value"])
    assert all(each.requires_grad for each in further.heads["value"].parameters())
    assert further.heads.keys() == {"value"}
    assert loaded.with_heads({}, seed=3).heads == {}


def test_one_of_another_shape_is_refused(model: LanguageModel, tmp_path: Path):
    model.save(tmp_path)
    loaded = Pretrained(path=str(tmp_path)).load(LoadRequest())
    with pytest.raises(LmflowError, match=r"its head value has the shape .*'bias': True.*wants .*'bias': False"):
        loaded.with_heads({"value": Head(bias=False)}, seed=3)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.b", Head(), "a head cannot be called 'a.b'"),
        ("", Head(), "cannot be called ''"),
        ("value", Head(outputs=0), "head value: every layer needs at least one output"),
        ("value", Head(hidden=(4, 0)), "head value: every layer needs"),
    ],
)
def test_what_is_no_head(name: str, head: Head, message: str):
    with pytest.raises(LmflowError, match=message):
        tiny_model().with_heads({name: head}, 0)


def test_a_model_that_scores_has_one_already():
    scorer = replace(tiny_model(), kind="scorer")
    with pytest.raises(
        LmflowError, match=r"scores whole sequences by a head of its own; the aligner adds the head value"
    ):
        scorer.with_heads({"value": Head()}, 0)


def test_a_skeleton_has_heads_without_values(tmp_path: Path):
    tiny_model().save(tmp_path)
    skeleton: Any = Pretrained(path=str(tmp_path)).skeleton(LoadRequest())
    found = skeleton.with_heads(WANTED, 0)
    assert all(each.is_meta for each in found.heads["reward"].parameters())


def test_the_module_gets_them_back_whatever_happens(model: LanguageModel):
    apart = heads_apart(model.module)
    apart.__enter__()
    assert not hasattr(model.module, HEADS)
    assert not apart.__exit__(KeyError, KeyError(), None)
    assert hasattr(model.module, HEADS)
    plain = tiny_model().module
    with heads_apart(plain):
        pass
    assert not hasattr(plain, HEADS)


@pytest.mark.parametrize("file", [CONFIG, "heads.safetensors"])
def test_damaged_ones_are_named(file: str, model: LanguageModel, tmp_path: Path):
    write_heads(model.heads, tmp_path)
    (tmp_path / FOLDER / file).write_text("{")
    with pytest.raises(LmflowError, match=rf"{tmp_path}.*{FOLDER}.* is damaged"):
        read_heads(tmp_path)


def test_weights_of_another_shape_than_the_file_says_are_damage(model: LanguageModel, tmp_path: Path):
    write_heads(model.heads, tmp_path)
    config = tmp_path / FOLDER / CONFIG
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 33'))
    with pytest.raises(LmflowError, match="is damaged"):
        read_heads(tmp_path)


def test_where_there_are_none_nothing_is_written_or_read(tmp_path: Path):
    write_heads({}, tmp_path)
    assert not list(tmp_path.iterdir())
    assert read_heads(tmp_path) == {}
    assert read_heads("owner/name") == {}
