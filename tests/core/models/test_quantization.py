"""Quantised weights: against their definition, against what Transformers makes of them, and in bytes."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.components import LoadRequest, Quantization
from lmflow.errors import LmflowError
from lmflow.models.pretrained import Pretrained
from lmflow.models.quantization import (
    BLOCK,
    QuantizedShape,
    computes_in_float32,
    count_parameters,
    is_quantized,
    keep_as_stored,
    placement_settings,
    scale_bytes,
    sizes_of,
    stored_quantization,
    unquantized_layers,
    with_quantized_shapes,
)
from lmflow.testing.tiny import tiny_module
from lmflow.training.batching_checks import is_low_precision

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


def rounded_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Every weight as the nearest level times the largest magnitude of its 64 neighbours."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / largest).unsqueeze(-1).sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


def test_nf4_is_the_plain_model_with_rounded_weights(bitsandbytes, wide_model: Path, logits):
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
    tokenizer = make_tokenizer()
    sizes = {"n_embd": 64} if architecture == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    tiny_module(architecture, len(tokenizer), **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Pretrained(path=str(tmp_path), quantization=kind)
    real, skeleton = model.load(LoadRequest()), model.skeleton(LoadRequest())
    named = [
        {name for name, each in one.module.named_modules() if type(each).__name__ in kinds}
        for one, kinds in ((real, ("Linear4bit", "Linear8bitLt")), (skeleton, ("QuantizedShape",)))
    ]
    assert named[0] == named[1] != set()
    assert not any("lm_head" in name or "wte" in name or "embed" in name for name in named[0])
    plain = sum(p.numel() for p in Pretrained(path=str(tmp_path)).skeleton(LoadRequest()).module.parameters())
    assert count_parameters(real.module) == count_parameters(skeleton.module) == plain
    assert is_quantized(real.module)
    assert is_quantized(skeleton.module)
    assert stored_bytes(skeleton.module) == pytest.approx(stored_bytes(real.module), rel=0.02)


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


def test_4_bit_weights_are_compared_as_float32_and_8_bit_ones_are_not(bitsandbytes, wide_model: Path):
    request = LoadRequest(quantization=Quantization("nf4"))
    model = Pretrained(path=str(wide_model))
    assert not is_low_precision(model.load(request))
    assert is_low_precision(model.load(replace(request, quantization=Quantization("int8"))))
    assert is_low_precision(model.load(replace(request, dtype="bfloat16")))
    assert is_low_precision(model.load(replace(request, quantization=Quantization("nf4", compute_dtype="bfloat16"))))


def test_weights_that_are_stored_quantised_are_not_quantised_again(bitsandbytes, wide_model: Path, tmp_path: Path):
    stored = shutil.copytree(wide_model, tmp_path / "stored")
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(LmflowError, match=r"stored quantised already \(gptq\)"):
        Pretrained(path=str(stored), quantization="nf4").load(LoadRequest())


# What Transformers is told


def never() -> Any:
    raise AssertionError("the skeleton is made only where layers are to be quantised")


def test_without_quantization_or_placement_nothing_is_told():
    assert placement_settings(SimpleNamespace(), LoadRequest(), never) == {}
    stored = SimpleNamespace(quantization_config={"quant_method": "gptq"})
    assert placement_settings(stored, LoadRequest(), never) == {}, "what is stored quantised is loaded as it is"


def test_a_device_map_needs_no_look_at_the_layers():
    assert placement_settings(SimpleNamespace(), LoadRequest(device_map="auto"), never) == {"device_map": "auto"}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (Quantization("nf4"), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
        (Quantization("fp4", False), {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
        (Quantization("nf4"), {"bnb_4bit_compute_dtype": torch.bfloat16}),
        (Quantization("nf4", compute_dtype="float32"), {"bnb_4bit_compute_dtype": torch.float32}),
        (Quantization("int8"), {"load_in_8bit": True, "load_in_4bit": False}),
    ],
    ids=str,
)
def test_bitsandbytes_is_told_what_was_asked(bitsandbytes, quantization: Quantization, expected: dict[str, Any]):
    request = LoadRequest(dtype="bfloat16", quantization=quantization)
    settings = placement_settings(SimpleNamespace(), request, lambda: tiny_module("llama"))
    assert settings["device_map"] == {"": "cpu"}, "packed where they are to be"
    told = settings["quantization_config"]
    assert {name: getattr(told, name) for name in expected} == expected
    assert "lm_head" in told.llm_int8_skip_modules


def test_a_device_map_wins_over_the_device_of_quantised_weights(bitsandbytes):
    request = LoadRequest(quantization=Quantization("nf4"), device_map="auto")
    assert placement_settings(SimpleNamespace(), request, lambda: tiny_module("llama"))["device_map"] == "auto"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, None),
        ({"quant_method": "awq"}, "awq"),
        ({}, "unknown"),
        (SimpleNamespace(quant_method="fp8"), "fp8"),
        (SimpleNamespace(quant_method=SimpleNamespace(value="bitsandbytes")), "bitsandbytes"),
        (SimpleNamespace(), "unknown"),
    ],
    ids=str,
)
def test_how_a_configuration_says_that_weights_are_stored_quantised(stored: Any, expected: str | None):
    assert stored_quantization(SimpleNamespace(quantization_config=stored)) == expected
    assert stored_quantization(SimpleNamespace()) is None


# Which layers


def test_layers_without_whole_blocks_keep_their_weights_in_4_bits_alone():
    module = tiny_module("llama", hidden_size=BLOCK, intermediate_size=BLOCK + 32)
    kept = unquantized_layers(module, Quantization("nf4"))
    assert [name for name in kept if name != "lm_head"] == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert unquantized_layers(module, Quantization("int8")) == ["lm_head"]


def test_a_tied_head_keeps_its_weights():
    module = tiny_module("llama", hidden_size=BLOCK, tie_word_embeddings=True)
    assert {"lm_head", "model.embed_tokens"} & set(unquantized_layers(module, Quantization("int8")))


def test_sizes_of_layers_that_are_quantised():
    from transformers.pytorch_utils import Conv1D

    class Own(nn.Linear):
        """Of a kind that is left alone."""

    assert sizes_of(nn.Linear(3, 5)) == (3, 5)
    assert sizes_of(Conv1D(5, 3)) == (3, 5), "which stores inputs first, and names outputs first"
    assert sizes_of(Own(3, 5)) is None
    assert sizes_of(nn.Embedding(3, 5)) is None


def test_only_layers_of_bitsandbytes_are_told_to_keep_what_they_store():
    layer = nn.Linear(2, 2)
    layer.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
    other = nn.Linear(2, 2)
    keep_as_stored(nn.Sequential(layer, other))
    assert layer.support_avx512bf16_for_cpu is False
    assert not hasattr(other, "support_avx512bf16_for_cpu")


# What they take


@pytest.mark.parametrize("weights", [1, 63, 64, 65, 64 * 256, 64 * 256 + 1])
def test_bytes_of_scales_count_what_is_begun(weights: int):
    """A block that is not full has a scale, and a group that is not full one too."""
    blocks = -(-weights // 64)
    assert scale_bytes(weights, 1, Quantization("nf4", False)) == 4 * blocks + 64
    assert scale_bytes(weights, 1, Quantization("nf4")) == blocks + 4 * -(-blocks // 256) + 4 * 273
    assert scale_bytes(weights, 7, Quantization("int8")) == 28


def test_packed_parameters_count_as_what_they_stand_for():
    module = nn.Sequential(QuantizedShape(64, 8, bias=True, quantization=Quantization("nf4")), nn.Linear(8, 2))
    assert count_parameters(module) == 64 * 8 + 8 + 8 * 2 + 2
    assert count_parameters(module, trainable_only=True) == 8 + 8 * 2 + 2
    eight = QuantizedShape(64, 8, bias=False, quantization=Quantization("int8"))
    assert count_parameters(eight) == 64 * 8


def test_products_of_float32():
    assert computes_in_float32(nn.Linear(2, 2))
    assert not computes_in_float32(nn.Linear(2, 2).bfloat16())
    assert not computes_in_float32(QuantizedShape(64, 2, bias=False, quantization=Quantization("int8")))
    packed = QuantizedShape(64, 2, bias=False, quantization=Quantization("nf4"))
    assert computes_in_float32(packed)
    packed.compute_dtype = torch.bfloat16  # type: ignore[assignment]
    assert not computes_in_float32(packed)


# Models without values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_without_values_computes_shapes_and_gradients(kind: Any, bias: bool):
    layer = QuantizedShape(64, 24, bias=bias, quantization=Quantization(kind))
    inputs = torch.empty(2, 3, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    outputs = layer(inputs)
    assert (outputs.shape, outputs.dtype) == ((2, 3, 24), torch.bfloat16)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.shape == inputs.shape
    assert layer.weight.grad is None
    assert layer.weight.nbytes == (64 * 24 if kind == "int8" else 64 * 24 // 2)


def test_an_odd_number_of_weights_takes_a_whole_byte_more():
    layer = QuantizedShape(3, 3, bias=False, quantization=Quantization("nf4"))
    assert layer.weight.shape == (5, 1)


def test_names_and_biases_stay_where_shapes_take_the_place_of_layers():
    with torch.device("meta"):
        module = tiny_module("qwen2", hidden_size=BLOCK, intermediate_size=2 * BLOCK)  # which has biases
    before = {name for name, _ in module.named_parameters()}
    made = with_quantized_shapes(module, Quantization("nf4"))
    assert {name for name, _ in made.named_parameters()} == before
    assert isinstance(made.get_submodule("model.layers.0.self_attn.q_proj"), QuantizedShape)
    assert type(made.get_submodule("lm_head")) is nn.Linear
    assert is_quantized(made)
    assert not is_quantized(tiny_module("llama"))


def test_what_bitsandbytes_says_of_every_product_is_not_shown():
    assert logging.getLogger("bitsandbytes.autograd._functions").level == logging.ERROR
