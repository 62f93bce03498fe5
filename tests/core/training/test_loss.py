"""The loss on target positions only, against every-position references."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from lmflow.data.collate import collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.training.loss import head_restricted_to, negative_log_likelihood, target_mask


def sequences(seed: int = 0, count: int = 4, vocab: int = 400) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        length = 5 + 3 * i
        ids = torch.randint(3, vocab, (length,), generator=generator).tolist()
        prompt = 2 + i
        made.append(TokenSequence(ids, [False] * prompt + [True] * (length - prompt), f"s{i}"))
    return made


def loss_of_one(module: nn.Module, sequence: TokenSequence) -> float:
    """Brute force: log-softmax at every position, one target at a time."""
    logits = module(torch.tensor([sequence.ids])).logits[0].double()
    total = 0.0
    for position in range(1, len(sequence)):
        if sequence.loss_mask[position]:
            total -= logits[position - 1].log_softmax(-1)[sequence.ids[position]].item()
    return total


def test_target_mask_by_hand():
    trained = torch.tensor([[False, False, True, True], [True, True, False, False]])
    # position i predicts token i+1; nothing predicts token 0, the last position predicts nothing
    assert target_mask(trained).tolist() == [[False, True, True, False], [True, False, False, False]]


def test_uniform_model_by_hand():
    """A model with equal logits loses log V per target: here 3 targets, V = 7."""
    head = nn.Linear(1, 7, bias=False)
    nn.init.zeros_(head.weight)

    class Uniform(nn.Module):
        def get_output_embeddings(self):
            return head

        def forward(self, input_ids, **_):
            return SimpleNamespace(logits=head(torch.ones(*input_ids.shape, 1)))

    batch = collate([TokenSequence([1, 2, 3, 4], [False, True, True, True])], 0)
    assert negative_log_likelihood(Uniform(), Uniform(), batch).item() == pytest.approx(3 * math.log(7))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_equals_brute_force(family: str, make_llama):
    torch.manual_seed(0)
    if family == "llama":
        module = make_llama()
    elif family == "gpt2":
        config = GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        module = AutoModelForCausalLM.from_config(config).eval()
    else:
        config = Qwen2Config(
            vocab_size=420,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        module = AutoModelForCausalLM.from_config(config).eval()
    samples = sequences()
    expected = sum(loss_of_one(module, s) for s in samples)
    assert negative_log_likelihood(module, module, collate(samples, 2)).item() == pytest.approx(expected, rel=1e-5)
    packed = collate_packed([samples[:3], samples[3:]], 2)
    assert negative_log_likelihood(module, module, packed).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_equals_every_position(make_llama):
    """Skipping untrained positions before the head changes nothing but the cost."""
    module, samples = make_llama(), sequences()
    batch = collate(samples, 2)
    negative_log_likelihood(module, module, batch).backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    labels = torch.where(batch.loss_mask, batch.input_ids, -100)
    logits = module(batch.input_ids, attention_mask=batch.attention_mask).logits
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_head_sees_only_targets_and_is_left_as_it_was(make_llama):
    module, batch = make_llama(), collate(sequences(), 2)
    mask = target_mask(batch.loss_mask)
    with head_restricted_to(module, mask):
        logits = module(batch.input_ids, attention_mask=batch.attention_mask).logits
    assert logits.shape == (batch.num_targets, 420)
    assert module(batch.input_ids).logits.shape == (*batch.input_ids.shape, 420)
