"""Loading: weights in fewer bits, weights on several devices, and how attention is computed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.builtin.attention import Eager, Sdpa
from lmflow.components import Attention, LoadRequest, Model, Quantization
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.load import load_for_inference
from lmflow.models.pretrained import Pretrained
from lmflow.models.quantization import count_parameters, is_quantized, scale_bytes
from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.resolve import model_from_reference, resolve, resolve_parts
from lmflow.recipe.settings import Scope
from lmflow.testing.runs import as_options
from lmflow.training.selftest import is_low_precision

KINDS = ("nf4", "fp4", "int8")
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.39491749,
        -0.28444138,
        -0.18477343,
        -0.09105004,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0,
    ]
)
"""The levels of NormalFloat4 (Dettmers et al., 2023, appendix E)."""


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is the extra `quantization` of lmflow-core")


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, make_llama, make_tokenizer) -> Path:
    """A tiny Llama whose layers have whole blocks of 64, but for one that has 96 inputs."""
    directory, tokenizer = tmp_path_factory.mktemp("models") / "wide", make_tokenizer()
    make_llama(len(tokenizer), hidden_size=64, intermediate_size=96).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.module(torch.arange(3, 20).unsqueeze(0)).logits.float()


def rounded_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Every weight as the nearest level times the largest magnitude of its 64 neighbours."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / largest).unsqueeze(-1).sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


# Quantised weights


def test_nf4_is_the_plain_model_with_rounded_weights(bitsandbytes, wide_model: Path):
    """Against the definition: the plain model, its block layers rounded by hand, computes the same."""
    quantised = Pretrained(path=str(wide_model)).load(LoadRequest(quantization=Quantization("nf4", False)))
    plain = Pretrained(path=str(wide_model)).load(LoadRequest())
    before = logits(plain)
    for name, layer in plain.module.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head" and not name.endswith("down_proj"):
            layer.weight.data = rounded_to_nf4(layer.weight.data)
    expected = logits(plain)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(quantised), expected, rtol=0, atol=1e-5)
    quantised.module.train()  # and the weights are the same whichever mode they were used in
    torch.testing.assert_close(logits(quantised), expected, rtol=0, atol=1e-5)
    assert quantised.module.get_submodule("model.layers.0.mlp.down_proj").weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_skeleton_has_what_is_quantised_and_its_bytes(bitsandbytes, architecture, kind, tmp_path, make_tokenizer):
    from lmflow.testing.tiny import tiny_module

    tokenizer = make_tokenizer()
    sizes = {"n_embd": 64} if architecture == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    tiny_module(architecture, len(tokenizer), **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Pretrained(path=str(tmp_path), quantization=kind)
    real, outline = model.load(LoadRequest()), model.skeleton(LoadRequest())
    named = [
        {name for name, each in one.module.named_modules() if type(each).__name__ in kinds}
        for one, kinds in ((real, ("Linear4bit", "Linear8bitLt")), (outline, ("QuantizedShape",)))
    ]
    assert named[0] == named[1] != set()
    assert not any("lm_head" in name or "wte" in name or "embed" in name for name in named[0])
    plain = sum(p.numel() for p in Pretrained(path=str(tmp_path)).skeleton(LoadRequest()).module.parameters())
    assert count_parameters(real.module) == count_parameters(outline.module) == plain
    assert is_quantized(real.module)
    assert is_quantized(outline.module)
    assert stored_bytes(outline.module) == pytest.approx(stored_bytes(real.module), rel=0.02)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all tensors that hold weights or what they are unpacked with."""
    tensors = [*module.parameters(), *module.buffers()]
    for parameter in module.parameters():
        state = getattr(parameter, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [value for value in vars(each).values() if isinstance(value, torch.Tensor)] if each else []
        tensors += [value for name in ("SCB",) if (value := getattr(parameter, name, None)) is not None]
    return sum(each.nbytes for each in {id(each): each for each in tensors}.values())


def test_bytes_of_scales_by_hand():
    """4096 x 4096 weights: 262,144 blocks of 64."""
    count = 4096 * 4096
    assert scale_bytes(count, 4096, Quantization("nf4", False)) == 4 * 262_144 + 4 * 16
    assert scale_bytes(count, 4096, Quantization("nf4")) == 262_144 + 4 * 1024 + 4 * (256 + 16 + 1)
    assert scale_bytes(count, 4096, Quantization("int8")) == 4 * 4096


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_every_model_of_ours(bitsandbytes, kind, wide_model: Path, plugins):
    settings = as_options(model=str(wide_model), model__quantization=kind)
    parts = resolve_parts(plugins, Scope("generate", ("model",), {}), settings)
    model = load_for_inference(parts["model"], plugins)
    assert is_quantized(model.module)
    assert model.module.lm_head.weight.dtype == torch.float32
    off = (logits(model) - logits(Pretrained(path=str(wide_model)).load(LoadRequest()))).abs().max()
    assert 0 < off < 0.5


def test_the_demo_stays_the_default_model(plugins):
    found = resolve(plugins, options=as_options(tuner="lora", model__quantization="nf4")).recipe.model
    assert (found.name, found.quantization) == ("demo", "nf4")


def test_4_bit_weights_are_compared_as_float32_and_8_bit_ones_are_not(bitsandbytes, wide_model: Path):
    request = LoadRequest(quantization=Quantization("nf4"))
    model = Pretrained(path=str(wide_model))
    assert not is_low_precision(model.load(request))
    assert is_low_precision(model.load(replace(request, quantization=Quantization("int8"))))
    assert is_low_precision(model.load(replace(request, dtype="bfloat16")))
    assert is_low_precision(model.load(replace(request, quantization=Quantization("nf4", compute_dtype="bfloat16"))))


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


def test_weights_that_are_stored_quantised_are_not_quantised_again(bitsandbytes, wide_model: Path, tmp_path: Path):
    import shutil

    stored = shutil.copytree(wide_model, tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(LmflowError, match=r"stored quantised already \(gptq\)"):
        Pretrained(path=str(stored), quantization="nf4").load(LoadRequest())


# Weights on several devices


def test_a_device_map_places_the_layers(model_directory: Path, plugins, monkeypatch):
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


# Attention


class Unknown(Attention):
    """One that Transformers has not."""

    name = "unknown"

    def implementation(self, config: Any, device: str) -> str:
        """No such thing."""
        return "no_such_attention"


@pytest.mark.parametrize("attention", [Eager(), Sdpa()])
def test_the_model_computes_attention_as_asked(attention, model_directory: Path):
    request = LoadRequest(attention=attention)
    for model in (
        Pretrained(path=str(model_directory)).load(request),
        Pretrained(path=str(model_directory)).skeleton(request),
    ):
        assert model.module.config._attn_implementation == attention.name
        assert model.attention is attention


def test_one_message_names_the_model_type(model_directory: Path):
    for method in ("load", "skeleton"):
        with pytest.raises(
            LmflowError, match="--attention unknown: a model of type llama cannot be built with it"
        ) as caught:
            getattr(Pretrained(path=str(model_directory)), method)(LoadRequest(attention=Unknown()))
        assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_has_no_such_attention_is_named(tmp_path: Path, make_tokenizer):
    """BLOOM computes its attention itself, with ALiBi."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = make_tokenizer()
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LmflowError, match="--attention sdpa: a model of type bloom cannot be built with it"):
        Pretrained(path=str(tmp_path)).load(LoadRequest(attention=Sdpa()))
    assert Pretrained(path=str(tmp_path)).load(LoadRequest(attention=Eager())).attention == Eager()


def test_a_reference_carries_no_options_of_its_own(model_directory: Path, plugins):
    found = model_from_reference(plugins, str(model_directory))
    assert (found.quantization, found.device_map) == (None, None)
