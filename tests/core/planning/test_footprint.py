"""Estimated memory against what torch's own profiler sees allocated in the same step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.planning.footprint import Footprint, StepSettings, predict_footprint, predict_validation, split_over
from lmflow.training.loss import negative_log_likelihood

from .peaks import live_peak, without_weights

WIDTH = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = LlamaConfig(**WIDTH, vocab_size=500)
CONFIGS = [
    LLAMA,
    Qwen2Config(**WIDTH, num_key_value_heads=2, vocab_size=500, tie_word_embeddings=True),
    Gemma2Config(**WIDTH, num_key_value_heads=2, head_dim=16, vocab_size=500),
    GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, resid_pdrop=0.1),
]


def make(config: object, *, lora: bool = False) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = AutoModelForCausalLM.from_config(config)
    if lora:
        module = get_peft_model(module, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    return module.train()


def batch_of(*lengths: int, packed: bool = False) -> Batch:
    sequences = [TokenSequence([1 + i % 400 for i in range(n)], [i > n // 3 for i in range(n)]) for n in lengths]
    return collate_packed([sequences], 0) if packed else collate(sequences, 0)


def step_peak(module: nn.Module, batch: Batch, *, bf16: bool = False, backward: bool = True) -> int:
    """The most bytes that a step held at once beside the weights."""

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = negative_log_likelihood(module, module, batch)
        if backward:
            loss.backward()
            module.zero_grad()

    with torch.set_grad_enabled(backward):
        return live_peak(step)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: each.model_type)
@pytest.mark.parametrize("how", ["full", "lora", "recomputed", "packed", "bf16"])
def test_a_step_takes_what_was_estimated(config, how):
    module = make(config, lora=how == "lora")
    batch = batch_of(120, 90, 130, packed=how == "packed")
    recomputed, bf16 = how == "recomputed", how == "bf16"
    setting = StepSettings(gradient_checkpointing=recomputed, precision="bf16" if bf16 else "fp32")
    found = without_weights(predict_footprint(module, batch, setting))
    if recomputed:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    assert found == pytest.approx(step_peak(module, batch, bf16=bf16), rel=0.05)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: each.model_type)
def test_a_pass_without_gradients_takes_what_was_estimated(config):
    module, batch = make(config).eval(), batch_of(400, 390, 410)
    found = predict_validation(module, batch, StepSettings())
    assert found.gradients == 0
    assert found.activations + found.logits == pytest.approx(step_peak(module, batch, backward=False), rel=0.1)


def test_weights_on_the_meta_device_are_enough():
    with torch.device("meta"):
        skeleton = make(LLAMA)
    batch = batch_of(40, 60)
    assert predict_footprint(skeleton, batch, StepSettings()) == predict_footprint(make(LLAMA), batch, StepSettings())


def test_the_module_is_left_as_it_is():
    module = make(LLAMA)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    predict_footprint(module, batch_of(40), StepSettings(gradient_checkpointing=True))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.is_gradient_checkpointing


def test_the_second_pass_of_a_step_finds_gradients():
    module, batch = make(LLAMA), batch_of(120, 90)
    one, two = (predict_footprint(module, batch, StepSettings(passes=passes)) for passes in (1, 2))
    assert two.gradients == 4 * sum(each.numel() for each in module.parameters())
    assert two.activations + two.logits >= one.activations + one.logits - one.gradients


def test_frozen_weights_cost_nothing():
    """Neither gradients nor optimizer state, and what lies below the last trained layer keeps no activations."""
    whole, last = make(LLAMA), make(LLAMA).requires_grad_(False)
    last.model.layers[-1].requires_grad_(True)
    trained = 4 * sum(each.numel() for each in last.model.layers[-1].parameters())
    batch = batch_of(120, 90, 130)
    all_of_it, little = (predict_footprint(module, batch, StepSettings(passes=2)) for module in (whole, last))
    assert little.gradients <= trained
    assert little.optimizer == 2 * trained
    assert little.activations < 0.45 * all_of_it.activations
    assert little.activations + little.logits + little.gradients == pytest.approx(step_peak(last, batch), rel=0.1)


def test_parameters_at_rest_cost_what_frozen_ones_do():
    """Those that the tuner names at another step: no gradient and no state, though their weights are float32."""
    module, frozen = make(LLAMA), make(LLAMA).requires_grad_(False)
    frozen.model.layers[-1].requires_grad_(True)
    names = {name for name, each in frozen.named_parameters() if each.requires_grad}
    batch = batch_of(120, 90, 130)
    resting = predict_footprint(module, batch, StepSettings(active=names))
    assert resting == predict_footprint(frozen, batch, StepSettings())
    assert all(each.requires_grad for each in module.parameters()), "the module is left as it was"
    kept = predict_validation(module, batch, StepSettings(active=names))
    assert kept.optimizer == resting.optimizer


def test_a_copy_of_the_start_has_what_rests_too():
    module, batch = make(LLAMA), batch_of(40)
    whole = 4 * sum(each.numel() for each in module.parameters())
    plain, kept = (
        predict_footprint(module, batch, StepSettings(active={"lm_head.weight"}, keeps_start=keeps))
        for keeps in (False, True)
    )
    assert kept.weights == plain.weights + whole


def test_a_copy_of_the_start_is_counted():
    module, batch = make(LLAMA, lora=True), batch_of(40)
    trained = 4 * sum(each.numel() for each in module.parameters() if each.requires_grad)
    plain, kept = (predict_footprint(module, batch, StepSettings(keeps_start=keeps)) for keeps in (False, True))
    assert kept.weights == plain.weights + trained


def test_the_optimizer_step_is_the_peak_of_short_batches():
    module = make(LLAMA)
    numbers = 4 * sum(each.numel() for each in module.parameters())
    found = predict_footprint(module, batch_of(2), StepSettings(device="cuda"))
    assert (found.activations, found.gradients, found.optimizer) == (0, numbers, 3 * numbers)


def test_each_strategy_splits_its_part():
    module = make(LLAMA)
    whole = Footprint(weights=4000, gradients=400, optimizer=800, activations=70, logits=7)
    parts = {
        strategy: split_over(whole, StepSettings(strategy=strategy, processes=4), module)
        for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp")
    }
    assert parts["ddp"] == whole
    assert (parts["zero1"].gradients, parts["zero1"].optimizer) == (400, 200)
    assert (parts["zero2"].gradients, parts["zero2"].optimizer) == (100, 200)
    assert parts["zero3"] == parts["fsdp"]
    assert {each.activations for each in parts.values()} == {70}
    assert split_over(whole, StepSettings(strategy="fsdp", processes=1), module) == whole
