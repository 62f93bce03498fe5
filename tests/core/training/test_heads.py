"""What heads make of hidden states: at the right places, packed as unpacked, with gradients for all that trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.components import Head, Tuner
from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.models.language_model import LanguageModel
from lmflow.testing.tiny import tiny_model
from lmflow.training.heads import head_applied, head_outputs, last_positions
from lmflow.training.loss import forward_inputs, target_logprobs
from lmflow.training.optimizer import build_optimizer
from lmflow.training.rotation import Rotation

SEQUENCES = [TokenSequence(list(range(5, 5 + n)), [False] * 2 + [True] * (n - 2), f"s{n}") for n in (6, 11, 3, 8)]


@pytest.fixture(params=["llama", "gpt2"])
def model(request: Any) -> LanguageModel:
    return tiny_model(request.param, sharpness=3.0).with_heads({"value": Head(outputs=2, hidden=(8,))}, seed=1)


def packed(sequences: list[TokenSequence] = SEQUENCES) -> Batch:
    return collate_packed([sequences[:2], sequences[2:]], 2)


def hidden_states(model: LanguageModel, batch: Batch) -> Tensor:
    """The last hidden states of every position, as Transformers returns them: the plain reference, (B, T, H)."""
    states: Tensor = model.module(**forward_inputs(batch), output_hidden_states=True).hidden_states[-1]
    return states


def test_at_targets_it_is_what_the_head_makes_of_the_states_before_them(model: LanguageModel):
    batch, head = collate(SEQUENCES, 2), model.heads["value"]
    states = hidden_states(model, batch)
    expected = [head(states[row, place]) for row, n in enumerate((6, 11, 3, 8)) for place in range(1, n - 1)]
    found = head_outputs(model.module, model.module, batch, head)
    torch.testing.assert_close(found, torch.stack(expected))
    assert found.dtype == torch.float32


def test_packed_and_padded_give_the_same(model: LanguageModel):
    head = model.heads["value"]
    apart, together = (
        head_outputs(model.module, model.module, each, head) for each in (collate(SEQUENCES, 2), packed())
    )
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_at_last_tokens_too(model: LanguageModel):
    head = model.heads["value"]
    padded, rows = collate(SEQUENCES, 2), packed()
    assert last_positions(padded).tolist() == [5, 11 + 10, 22 + 2, 33 + 7]
    assert last_positions(rows).tolist() == [5, 16, 17 + 2, 17 + 10]
    apart, together = (
        head_outputs(model.module, model.module, each, head, last_positions(each)) for each in (padded, rows)
    )
    alone = [hidden_states(model, collate([each], 2))[0, -1] for each in SEQUENCES]
    torch.testing.assert_close(apart, torch.stack([head(each) for each in alone]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_beside_log_probabilities_neither_changes(model: LanguageModel):
    batch, head = packed(), model.heads["value"]
    with head_applied(model.module, head, batch.target_positions) as found:
        logprobs, mask = target_logprobs(model.module, model.module, batch)
    expected, expected_mask = target_logprobs(model.module, model.module, batch)
    assert torch.equal(logprobs, expected)
    assert torch.equal(mask, expected_mask)
    assert len(found) == 1
    torch.testing.assert_close(found[0], head_outputs(model.module, model.module, batch, head))
    assert len(found[0]) == len(logprobs)


def test_the_first_pass_of_a_model_is_none_of_its_results():
    """What becomes of logits is tried once on two tokens, which have no places of the batch."""
    model = tiny_model(seed=3).with_heads({"value": Head()}, 0)
    batch = collate(SEQUENCES, 2)
    with head_applied(model.module, model.heads["value"], batch.target_positions) as found:
        target_logprobs(model.module, model.module, batch)
    assert [len(each) for each in found] == [batch.num_targets]


def test_a_model_that_does_something_unknown_to_its_logits(model: LanguageModel):
    class Odd(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.get_output_embeddings()  # type: ignore[operator, no-any-return]

        def forward(self, **inputs: Any) -> Any:
            out = self.inner(**inputs)
            ramp = torch.linspace(0.5, 2.0, out.logits.shape[-1])
            return type(out)(logits=(out.logits * ramp).masked_fill(ramp > 1.99, -torch.inf))

    odd, batch, head = Odd(model.module), packed(), model.heads["value"]
    with head_applied(odd, head, batch.target_positions) as found:
        logprobs, _ = target_logprobs(odd, odd, batch)
    expected = head_outputs(model.module, model.module, batch, head)
    torch.testing.assert_close(found[0], expected)
    alone = head_outputs(odd, odd, batch, head)  # though some logits are not finite
    torch.testing.assert_close(alone, expected)
    assert len(logprobs) == batch.num_targets


def test_everything_that_trains_has_a_gradient_and_the_output_head_one_of_zero(model: LanguageModel):
    batch, head = packed(), model.heads["value"]
    head_outputs(model.module, model.module, batch, head).square().sum().backward()
    grads = {name: each.grad for name, each in model.module.named_parameters()}
    assert all(each is not None for each in grads.values())
    assert all(each.any() for name, each in grads.items() if name.startswith("aligner_heads"))
    if "lm_head.weight" in grads:  # not tied
        assert not grads["lm_head.weight"].any()


def test_the_gradient_is_that_of_the_plain_computation(model: LanguageModel):
    batch, head = collate(SEQUENCES, 2), model.heads["value"]
    head_outputs(model.module, model.module, batch, head, last_positions(batch)).square().sum().backward()
    found = {name: each.grad.clone() for name, each in model.module.named_parameters()}
    model.module.zero_grad()
    states = hidden_states(model, batch).flatten(0, 1)[last_positions(batch)]
    head(states).square().sum().backward()
    for name, each in model.module.named_parameters():
        if each.grad is not None:
            torch.testing.assert_close(found[name], each.grad, atol=1e-5, rtol=1e-4)


def test_without_a_target_the_gradient_is_zero_rather_than_none(model: LanguageModel):
    """As in a process that has no sample of a step left, and exchanges gradients all the same."""
    idle = collate([replace(SEQUENCES[0], loss_mask=[False] * 6)], 2)
    found = head_outputs(model.module, model.module, idle, model.heads["value"])
    assert found.shape == (0, 2)
    found.sum().backward()
    assert all(each.grad is not None and not each.grad.any() for each in model.module.parameters())


def test_under_autocast_results_are_float32(model: LanguageModel):
    batch, head = packed(), model.heads["value"]
    with torch.autocast("cpu", torch.bfloat16):
        low = head_outputs(model.module, model.module, batch, head)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, head_outputs(model.module, model.module, batch, head), atol=0.1, rtol=0.1)


def test_a_model_in_bf16_without_autocast(model: LanguageModel):
    head = model.heads["value"]
    module = model.module.to(torch.bfloat16)
    head.float()
    assert head_outputs(module, module, packed(), head).dtype == torch.float32


class Rotates(Tuner):
    """The first parameter at even steps, the second at odd ones; it knows of no others."""

    name = "rotates"
    seen: list[list[str]] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def active(self, step: int, names: Any, seed: int) -> Any:
        self.seen.append(list(names))
        return [names[step % 2]]

    def parameter_groups(self, names: Any) -> Any:
        self.seen.append(list(names))
        return ()


def test_a_tuner_is_not_asked_of_heads_which_train_at_every_step(model: LanguageModel):
    from types import SimpleNamespace

    tuner = Rotates()
    trainable = dict(model.module.named_parameters())
    strategy: Any = SimpleNamespace(optimizer=SimpleNamespace(state={}), rewrap=lambda: None)
    rotation = Rotation(tuner, trainable, 0)
    heads = {name for name in trainable if name.startswith("aligner_heads")}
    for step in range(2):
        rotation.switch(step, strategy)
        moving = {name for name, each in trainable.items() if each.requires_grad}
        assert heads < moving
        assert len(moving) == len(heads) + 1
    options: Any = SimpleNamespace(learning_rate=1e-3)
    optimizer: Any = SimpleNamespace(weight_decay=0.1, build=lambda groups: groups)
    groups: Any = build_optimizer(optimizer, tuner, model, options, trainable)
    assert all(not heads & set(names) for names in tuner.seen)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"] if name in heads}
    assert decay == {name: 0.1 if name.endswith("weight") else 0.0 for name in heads}
    assert sum(len(group["names"]) for group in groups) == len(trainable)
