"""Losses without whole logits: against plain cross-entropy, torch's gradient check, and real architectures."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, PhiConfig

from lmflow.data.collate import Batch, collate
from lmflow.data.sample import TokenSequence
from lmflow.training.batching_checks import all_logprobs
from lmflow.training.chunked_loss import (
    IDENTITY,
    LogitTransform,
    checkpointed_logprobs,
    chunked_logprobs,
    chunked_nll,
)
from lmflow.training.loss import negative_log_likelihood, target_logprobs
from lmflow.training.output_head import output_head

TRANSFORMS = [IDENTITY, LogitTransform(scale=0.25), LogitTransform(cap=2.0), LogitTransform(scale=3.0, cap=1.5)]
ROWS, VOCABULARY, WIDTH = 23, 57, 11


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Hidden states, weight and bias in float64, and targets."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=draw)
    return {
        "hidden": normal(ROWS, WIDTH),
        "weight": normal(VOCABULARY, WIDTH),
        "bias": normal(VOCABULARY),
        "targets": targets,
    }


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform) -> Tensor:
    """Every logit at once; written apart from what is tested."""
    logits = nn.functional.linear(hidden, weight, bias) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_values_and_gradients_equal_the_plain_ones(transform, with_bias, rows, inputs):
    upstream = torch.randn(ROWS, generator=torch.Generator().manual_seed(1))
    names = ["hidden", "weight", *(["bias"] if with_bias else [])]
    budget = rows * VOCABULARY * 4

    def gradients(function: Any, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        given = {name: inputs[name].float().requires_grad_() for name in names}
        value = function(given["hidden"], given["weight"], given.get("bias"), inputs["targets"], transform)
        (value * weights).sum().backward()
        return value.detach(), [given[name].grad for name in names]

    def checkpointed(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: LogitTransform
    ) -> Tensor:
        return checkpointed_logprobs(hidden, lambda part: nn.functional.linear(part, weight, bias), targets, how, rows)

    expected, slopes = gradients(plain, upstream)
    for function in (lambda *given: chunked_logprobs(*given, budget), checkpointed):
        value, found = gradients(function, upstream)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-5)

    expected, slopes = gradients(lambda *given: -plain(*given).sum(), torch.tensor(0.3))
    value, found = gradients(lambda *given: chunked_nll(*given, budget), torch.tensor(0.3))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, slopes, rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow(inputs):
    hidden, weight, targets = inputs["hidden"].float() * 1e3, inputs["weight"].float(), inputs["targets"]
    expected = plain(hidden, weight, None, targets, IDENTITY)
    torch.testing.assert_close(chunked_logprobs(hidden, weight, None, targets), expected, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(chunked_nll(hidden, weight, None, targets), -expected.sum(), rtol=1e-5, atol=1e-2)


def test_a_frozen_head_gets_no_gradient(inputs):
    hidden, weight = inputs["hidden"].float().requires_grad_(), inputs["weight"].float()
    for function in (chunked_nll, chunked_logprobs):
        function(hidden, weight, None, inputs["targets"]).sum().backward()
        assert weight.grad is None
        assert hidden.grad is not None


def test_no_target_at_all_still_reaches_every_parameter(inputs):
    """A process with nothing to do takes part in the exchange of gradients."""
    hidden, weight = inputs["hidden"].float()[:0].requires_grad_(), inputs["weight"].float().requires_grad_()
    for function in (chunked_nll, chunked_logprobs):
        function(hidden, weight, None, inputs["targets"][:0]).sum().backward()
        assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_under_autocast_the_head_computes_in_the_short_format(inputs):
    hidden, weight, targets = inputs["hidden"].float(), inputs["weight"].float(), inputs["targets"]
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.functional.linear(hidden, weight).float().log_softmax(-1)[torch.arange(ROWS), targets]
        torch.testing.assert_close(chunked_logprobs(hidden, weight, None, targets), expected)
        torch.testing.assert_close(chunked_nll(hidden, weight, None, targets), -expected.sum())


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
PLAIN_HEAD = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "head_dim")}
MODELS = {
    "gpt2": (GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4), IDENTITY),
    "gemma2": (Gemma2Config(**SMALL, final_logit_softcapping=3.0), LogitTransform(cap=3.0)),
    "cohere": (CohereConfig(**PLAIN_HEAD, logit_scale=0.0625), LogitTransform(scale=0.0625)),
    "granite": (GraniteConfig(**PLAIN_HEAD, logits_scaling=8.0), LogitTransform(scale=0.125)),
    "phi": (PhiConfig(**PLAIN_HEAD), IDENTITY),  # its head has a bias
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name][0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits large enough for a cap to bend them
    return model.eval()


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 300, (n,), generator=draw).tolist() for n in (9, 5, 14)]
    return collate([TokenSequence(each, [i > 2 for i in range(len(each))]) for each in ids], 0)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_head_is_found_out(name: str):
    model = made(name)
    assert output_head(model).transform == MODELS[name][1]
    check_against_logits(model)


def check_against_logits(model: nn.Module) -> None:
    """Log-probabilities, and gradients of what trains, are those from every logit."""
    inputs, plain_model = batch(), copy.deepcopy(model)
    expected = all_logprobs(plain_model, inputs)
    (-expected.sum()).backward()
    torch.testing.assert_close(target_logprobs(model, model, inputs)[0], expected, rtol=1e-5, atol=1e-5)
    negative_log_likelihood(model, model, inputs).backward()
    for (place, mine), other in zip(model.named_parameters(), plain_model.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), place
        if other.grad is not None:
            scale = float(other.grad.abs().max()) or 1.0
            torch.testing.assert_close(
                mine.grad, other.grad, rtol=0, atol=1e-5 * scale, msg=lambda m, p=place: f"{p}: {m}"
            )


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "lm_head"], "init_lora_weights": False},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": False},
    ],
)
def test_an_adapter_on_the_head_is_part_of_it(adapter: dict[str, Any]):
    model = get_peft_model(made("phi"), LoraConfig(r=2, **adapter))
    assert output_head(model).weight is None
    check_against_logits(model)


def test_what_is_not_known_is_left_to_the_model():
    """Logits are shifted by a function that no option of the model tells of."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made("gpt2")

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.get_output_embeddings()

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.logits = output.logits - output.logits.square()
            return output

    model = Odd()
    assert output_head(model).transform is None
    check_against_logits(model)


def test_the_model_is_left_as_it_was():
    model = made("gpt2")
    before = model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits
    negative_log_likelihood(model, model, batch())
    assert torch.equal(model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits, before)
    assert "forward" not in vars(model.get_output_embeddings())
