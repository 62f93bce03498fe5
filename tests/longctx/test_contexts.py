"""Contexts on real architectures: what is written, that plain Transformers loads it, and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow_longctx.contexts import Dynamic, Linear, Llama3, Ntk, RopeScaling, Yarn

ORIGINAL = 32
METHODS = [Linear, Ntk, Dynamic, Yarn, Llama3]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": ORIGINAL,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "cohere": {},
    "granite": {},
    "starcoder2": {"sliding_window": None},
    "glm4": {"head_dim": 16},
    "smollm3": {},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
}
IDS = torch.arange(3, 3 + 48)[None]


def config_of(kind: str, **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **(SIZES | ARCHITECTURES.get(kind, {}) | changes))


def build(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def logits(module: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_plain_transformers_loads_it_with_the_same_logits(kind: str, method: type[RopeScaling], tmp_path: Path):
    config = config_of(kind)
    unscaled = logits(build(config))
    method(factor=4).configure(config)
    module = build(config)
    scaled = logits(module)
    assert scaled.isfinite().all()
    assert not torch.allclose(scaled, unscaled, atol=1e-5), "the method changed nothing"
    module.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(reloaded.eval()), scaled)
    assert LanguageModel(reloaded, None, "").context_length == 4 * ORIGINAL


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi"])
def test_factor_one_changes_no_logit(kind: str, method: type[RopeScaling]):
    config = config_of(kind)
    ids = IDS[:, :ORIGINAL]
    before = logits(build(config), ids)
    method(factor=1).configure(config)
    torch.testing.assert_close(logits(build(config), ids), before, rtol=0, atol=1e-5)


def test_interpolated_positions_are_those_in_between():
    """Position 4p of a model interpolated by 4 is position p of the original: same token sequence, same logits."""
    config = config_of("llama")
    original = build(config)
    Linear(factor=4).configure(config)
    stretched = build(config)
    positions = torch.arange(ORIGINAL)[None]
    ids = IDS[:, :ORIGINAL]
    mask = torch.ones_like(ids)  # without one Transformers takes gaps between positions for ends of samples
    with torch.no_grad():
        expected = original(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
        found = stretched(ids, position_ids=4 * positions, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_dynamic_leaves_short_texts_alone():
    config = config_of("llama")
    short = IDS[:, :ORIGINAL]
    before = logits(build(config), short)
    Dynamic(factor=4).configure(config)
    assert config.max_position_embeddings == ORIGINAL
    module = build(config)
    assert torch.equal(logits(module, short), before)
    assert LanguageModel(module, None, "").context_length == 4 * ORIGINAL


@pytest.mark.parametrize(
    ("context", "expected", "length"),
    [
        (Linear(factor=4), {"rope_type": "linear", "factor": 4.0}, 128),
        (Linear(length=48), {"rope_type": "linear", "factor": 1.5}, 48),
        (Ntk(factor=4), {"rope_type": "default", "rope_theta": 10_000 * 4 ** (16 / 14)}, 128),
        (Dynamic(length=128), {"rope_type": "dynamic", "factor": 4.0}, 32),
        (
            Yarn(factor=2, original_length=16, beta_fast=8, attention_factor=1.0),
            {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 8,
                "beta_slow": 1,
                "attention_factor": 1.0,
            },
            32,
        ),
        (
            Llama3(factor=8, low_freq_factor=2),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "low_freq_factor": 2,
                "high_freq_factor": 4,
            },
            256,
        ),
    ],
)
def test_what_is_written(context: RopeScaling, expected: dict[str, Any], length: int):
    config = config_of("llama")
    context.configure(config)
    assert config.rope_parameters == pytest.approx({"rope_theta": 10_000.0} | expected)
    assert config.max_position_embeddings == length


def test_partial_rotation_is_kept():
    config = config_of("phi")
    Ntk(factor=4).configure(config)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    # 8 of a head's 16 dimensions turn
    assert config.rope_parameters["rope_theta"] == pytest.approx(10_000 * 4 ** (8 / 6))


def test_what_the_method_does_not_concern_is_kept():
    """Qwen2-VL's positions come from three axes; how the pairs are shared out among them stays."""
    config = config_of("qwen2_vl_text", rope_parameters={"rope_theta": 10_000.0, "mrope_section": [2, 3, 3]})
    Yarn(factor=4).configure(config)
    assert config.rope_parameters["mrope_section"] == [2, 3, 3]


def test_layers_with_a_window_are_left_alone_where_it_is_within_the_original_length():
    config = config_of("gemma3_text")
    Linear(factor=4).configure(config)
    assert config.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert config.rope_parameters["sliding_attention"]["rope_type"] == "default"
    wide = config_of("gemma3_text", sliding_window=64)
    Linear(factor=4).configure(wide)
    assert wide.rope_parameters["sliding_attention"]["rope_type"] == "linear"


def test_a_model_that_turns_a_share_of_its_pairs_takes_linear(tmp_path: Path):
    """Gemma 4's full attention: type proportional, which has a factor of its own."""
    sizes = {
        "head_dim": 16,
        "global_head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
    }
    config = config_of("gemma4_text", **sizes)
    before = copy.deepcopy(config.rope_parameters)
    original = logits(build(config))
    Linear(factor=4).configure(config)
    assert config.rope_parameters["sliding_attention"] == before["sliding_attention"]
    assert config.rope_parameters["full_attention"] == before["full_attention"] | {"factor": 4.0}
    module = build(config)
    assert not torch.allclose(logits(module), original, atol=1e-5)
    module.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(module))
    with pytest.raises(LmflowError, match="already of type proportional"):
        Ntk(factor=4).configure(config_of("gemma4_text", **sizes))


def test_an_odd_number_of_turned_dimensions_is_refused():
    with pytest.raises(LmflowError, match="glm4_moe model turns 21 dimensions of a head, an odd number"):
        Linear(factor=2).configure(AutoConfig.for_model("glm4_moe"))


def test_a_model_of_several_texts_is_refused():
    with pytest.raises(LmflowError, match="cannot extend model type musicgen"):
        Linear(factor=2).configure(AutoConfig.for_model("musicgen"))


def test_a_composed_configuration_has_its_text_part_extended():
    config = AutoConfig.for_model("gemma3", text_config=config_of("gemma3_text").to_dict())
    Linear(factor=4).configure(config)
    assert config.get_text_config().rope_parameters["full_attention"]["factor"] == 4
    assert config.get_text_config().max_position_embeddings == 4 * ORIGINAL


def test_linear_upon_linear_multiplies():
    config, whole = config_of("llama"), config_of("llama")
    Linear(factor=2).configure(config)
    Linear(factor=3).configure(config)
    Linear(factor=6).configure(whole)
    assert config.rope_parameters == whole.rope_parameters
    assert config.max_position_embeddings == whole.max_position_embeddings == 6 * ORIGINAL


@pytest.mark.parametrize("second", METHODS)
def test_no_other_method_is_put_upon_a_scaled_model(second: type[RopeScaling]):
    config = config_of("llama")
    Yarn(factor=2).configure(config)
    before = config.to_dict()
    with pytest.raises(LmflowError, match=r"already of type yarn by 2.*whole factor"):
        second(factor=2).configure(config)
    assert config.to_dict() == before


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "gptj", "mpt", "recurrent_gemma"])
def test_models_without_rope_are_refused_by_name(kind: str):
    with pytest.raises(LmflowError, match=rf"model type {kind}: .*no rotary positions"):
        Linear(factor=2).configure(AutoConfig.for_model(kind))


def test_falcon_with_alibi_is_refused():
    with pytest.raises(LmflowError, match="falcon"):
        Linear(factor=2).configure(AutoConfig.for_model("falcon", alibi=True))


@pytest.mark.parametrize("method", [Linear, Dynamic, Yarn, Llama3])
def test_a_type_the_architecture_does_not_take_is_refused_and_nothing_changed(method: type[RopeScaling]):
    config = AutoConfig.for_model("phi3")
    before = config.to_dict()
    with pytest.raises(LmflowError, match="model type phi3 does not take it"):
        method(factor=2).configure(config)
    assert config.to_dict() == before


def test_ntk_works_where_types_do_not():
    config = AutoConfig.for_model("phi3")
    Ntk(factor=2).configure(config)
    assert config.rope_parameters["rope_theta"] > 10_000


@pytest.mark.parametrize("length", [16, 32])
def test_a_length_that_is_no_extension_is_refused(length: int):
    with pytest.raises(LmflowError, match=rf"--context.length {length}: this llama model already reads 32 tokens"):
        Linear(length=length).configure(config_of("llama"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give either factor or length; neither was given"),
        ({"factor": 2, "length": 64}, "give either factor or length; both were given"),
        ({"factor": 0.5}, "greater than or equal to 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        Linear(**options)


def test_bounds_of_the_methods_own_options():
    with pytest.raises(ValidationError, match=r"beta_fast \(1\) must be above beta_slow \(1\)"):
        Yarn(factor=2, beta_fast=1)
    with pytest.raises(ValidationError, match=r"high_freq_factor \(1\) must be above low_freq_factor \(1\)"):
        Llama3(factor=2, high_freq_factor=1)


def option(path: str, value: str) -> Setting:
    return Setting(path, value, Origin("option", f"--{path}"))


def test_errors_on_the_command_line_name_the_option():
    plugins = load_plugins()
    with pytest.raises(RecipeError, match=r"--context.factor: must be at least 1.0, got '0.5'"):
        resolve(plugins, None, [option("context", "linear"), option("context.factor", "0.5")])
    with pytest.raises(RecipeError, match="context: give either factor or length"):
        resolve(plugins, None, [option("context", "linear")])


def test_a_loaded_model_is_extended(model_directory: Path):
    model = Pretrained(path=str(model_directory)).load(LoadRequest(context=Yarn(factor=4)))
    assert model.context_length == 1024
    assert model.module.config.rope_parameters["rope_type"] == "yarn"
    assert json.loads((model_directory / "config.json").read_text())["rope_parameters"]["rope_type"] == "default"


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e9])
def test_a_factor_that_no_model_has_is_refused(factor: float):
    with pytest.raises(ValueError, match="factor"):
        Linear(factor=factor)


def test_two_turned_dimensions_are_one_rule():
    from lmflow.testing.tiny import tiny_module

    for method in (Ntk(factor=2), Dynamic(factor=2)):
        config = tiny_module(hidden_size=8, num_attention_heads=4, num_key_value_heads=4).config
        with pytest.raises(LmflowError, match=rf"--context {method.name}: this model turns 2 dimensions"):
            method.configure(config)


def test_one_window_for_all_layers_needs_no_context():
    from lmflow.testing.tiny import tiny_module

    config = tiny_module("mistral", sliding_window=64).config
    with pytest.raises(LmflowError, match="every layer of this mistral model looks back over 64 tokens at most"):
        Linear(factor=2).configure(config)
    assert config.max_position_embeddings == 256
    Linear(factor=2).configure(tiny_module("mistral", sliding_window=512).config)
