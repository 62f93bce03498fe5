"""Objectives: a sum over the targets or the items of a batch, with metrics beside it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.training.objective import FunctionObjective, Loss, NextToken, Objective


def test_next_token_by_hand():
    """Two tokens of three: logits 0, ln 2, ln 5 are the shares 1/8, 2/8, 5/8 whatever came before."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 3, bias=False)
            self.head.weight = nn.Parameter(torch.tensor([[0.0], [math.log(2)], [math.log(5)]]))

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=self.head(torch.ones(*input_ids.shape, 1)))

    module = Fixed()
    batch = collate([TokenSequence([0, 2, 1], [False, True, True])], 0)
    loss = NextToken()(module, module, batch)
    assert loss.total.item() == pytest.approx(math.log(8 / 5) + math.log(8 / 2), rel=1e-6)
    loss.total.backward()  # type: ignore[no-untyped-call]
    # Of each target: the shares, less one at the target.
    gradient = module.head.weight.grad
    assert gradient is not None
    assert gradient.flatten().tolist() == pytest.approx([2 / 8, 4 / 8 - 1, 10 / 8 - 1], rel=1e-5)


def test_next_token_equals_transformers_loss_and_is_a_sum(tiny_model: Any, few_sequences: list[TokenSequence]):
    tiny_model.module.requires_grad_(False)
    batch = collate(few_sequences, tiny_model.pad_id)
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
    expected = tiny_model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    found = NextToken()(tiny_model.module, tiny_model.module, batch)
    assert float(found.total) == pytest.approx(float(expected) * batch.num_targets, rel=1e-5)
    assert dict(found.metrics) == {}
    parts = [NextToken()(tiny_model.module, tiny_model.module, collate([each], 2)).total for each in few_sequences]
    assert float(torch.stack(parts).sum()) == pytest.approx(float(found.total), rel=1e-5)


def test_next_token_is_the_same_packed(tiny_model: Any, few_sequences: list[TokenSequence]):
    module = tiny_model.module
    padded, packed = collate(few_sequences[:4], 2), collate_packed([few_sequences[:4]], 2)
    losses = [float(NextToken()(module, module, batch).total) for batch in (padded, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_function_may_return_a_sum_or_a_loss(tiny_model: Any, few_sequences: list[TokenSequence]):
    batch = collate(few_sequences[:2], 2)
    given: list[Any] = []

    def both(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        given.append((forward, module, batch))
        return Loss(torch.tensor(3.0), {"rows": 2.0})

    forward, module = nn.Identity(), tiny_model.module
    assert FunctionObjective(both)(forward, module, batch) == Loss(torch.tensor(3.0), {"rows": 2.0})
    assert given == [(forward, module, batch)]
    found = FunctionObjective(lambda *_: torch.tensor(4.0))(forward, module, batch)
    assert (float(found.total), dict(found.metrics)) == (4.0, {})


def test_what_sums_are_divided_by():
    assert NextToken().per == "token"
    assert FunctionObjective(lambda *_: torch.zeros(())).per == "token"
    assert FunctionObjective(lambda *_: torch.zeros(()), "item").per == "item"


def test_an_objective_without_a_call_cannot_be_made():
    class Half(Objective):
        per = "item"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
