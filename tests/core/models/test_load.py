"""Loading for use: options that every model has, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.builtin.attention import Eager
from lmflow.components import LoadRequest, Model, Quantization
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.load import Compute, load_for_inference
from lmflow.models.pretrained import Pretrained
from lmflow.models.quantization import is_quantized
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import model_from_reference, resolve, resolve_parts
from lmflow.recipe.settings import Scope
from lmflow.testing.runs import as_options

KINDS = ("nf4", "fp4", "int8")


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


# Options of loading


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_every_model_of_ours(bitsandbytes, kind, wide_model: Path, plugins, logits):
    settings = as_options(model=str(wide_model), model__quantization=kind)
    parts = resolve_parts(plugins, Scope("generate", ("model",), {}), settings)
    model = load_for_inference(parts["model"], plugins)
    assert is_quantized(model.module)
    assert model.module.lm_head.weight.dtype == torch.float32
    off = (logits(model) - logits(Pretrained(path=str(wide_model)).load(LoadRequest()))).abs().max()
    assert 0 < off < 0.5


def test_the_demo_stays_the_default_model(bitsandbytes, plugins):
    found = resolve(plugins, options=as_options(tuner="lora", model__quantization="nf4")).recipe.model
    assert (found.name, found.quantization) == ("demo", "nf4")


class Whole(Model):
    """A model that knows of no quantization."""

    name = "whole"

    def load(self, request: LoadRequest) -> Any:
        """Never asked."""
        raise AssertionError


def test_a_model_that_does_not_support_it_refuses():
    with pytest.raises(ValueError, match="model whole does not support it"):
        Whole(quantization="nf4")
    with pytest.raises(ValueError, match="model whole does not support it"):
        Whole(device_map="auto")
    with pytest.raises(LmflowError, match=r"model.quantization: model whole does not support it"):
        Whole().completed(LoadRequest(quantization=Quantization("nf4")))
    with pytest.raises(LmflowError, match=r"model.device_map: model whole does not support it"):
        Whole().completed(LoadRequest(device_map="auto"))


def test_bitsandbytes_is_named_where_it_is_missing(plugins, model_directory: Path, monkeypatch):
    from lmflow.components import base

    find = base.find_spec
    monkeypatch.setattr(base, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    wanted = r"bitsandbytes, which is not installed: pip install 'lmflow-core\[quantization\]'"
    with pytest.raises(RecipeError, match=wanted):
        resolve(plugins, options=as_options(model=str(model_directory), tuner="lora", model__quantization="nf4"))
    with pytest.raises(LmflowError, match=wanted):
        Pretrained(path=str(model_directory), quantization="int8").load(LoadRequest())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"model__quantization": "nf4"}, r"--model.quantization: tuner full changes .*; choose --tuner .*lora"),
        ({"model__device_map": "auto", "tuner": "lora"}, "--model.device_map: for lmflow generate, chat and eval"),
        (
            {"model__quantization": "nf4", "tuner": "lora", "launch__processes": "2", "launch__strategy": "fsdp"},
            "--model.quantization: quantised weights cannot be split over processes",
        ),
        ({"model__quantization": "nf5"}, "--model.quantization: .*nf4"),
    ],
)
def test_what_training_cannot_do_is_refused_before_anything_is_loaded(bitsandbytes, given, wanted, plugins):
    with pytest.raises(RecipeError, match=wanted):
        resolve(plugins, options=as_options(**given))


# Weights on several devices


def test_a_device_map_places_the_layers(model_directory: Path, plugins, logits, monkeypatch):
    from transformers import AutoModelForCausalLM

    asked, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **settings: asked.append(settings) or load(*a, **settings)
    )
    parts = resolve_parts(
        plugins,
        Scope("generate", ("model",), {}),
        as_options(model=str(model_directory), model__device_map="auto"),
    )
    model = load_for_inference(parts["model"], plugins)
    assert [settings["device_map"] for settings in asked] == ["auto"]
    plain = Pretrained(path=str(model_directory)).load(LoadRequest())
    assert "device_map" not in asked[1]
    torch.testing.assert_close(logits(model).cpu(), logits(plain), rtol=0, atol=1e-5)


def test_a_reference_carries_no_options_of_its_own(model_directory: Path, plugins):
    found = model_from_reference(plugins, str(model_directory))
    assert (found.quantization, found.device_map) == (None, None)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_the_dtype_is_as_asked(precision: str, dtype: torch.dtype, model_directory: Path, plugins):
    compute = Compute(device="cpu", precision=precision)  # type: ignore[arg-type]
    model = load_for_inference(Pretrained(path=str(model_directory)), plugins, compute=compute)
    assert {parameter.dtype for parameter in model.module.parameters()} == {dtype}
    assert model.device == torch.device("cpu")


def test_attention_and_plugins_reach_the_model(plugins):
    asked: list[LoadRequest] = []

    class Asked(Whole):
        """A model that notes what it is asked for."""

        def load(self, request: LoadRequest) -> Any:
            """Nothing is loaded."""
            asked.append(request)

    load_for_inference(Asked(), plugins, attention=Eager(), compute=Compute(device="cpu"))
    assert asked == [LoadRequest(attention=Eager(), plugins=plugins)]
