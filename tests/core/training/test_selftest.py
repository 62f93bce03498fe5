"""The start-up checks: silent on a sound model, and each one catching the fault it is for."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.data.collate import collate
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.training.objective import NextToken
from lmflow.training.selftest import check_gradients, check_model, check_movement, choose_probes


@pytest.fixture
def sequences() -> list[TokenSequence]:
    return [TokenSequence(list(range(5, 5 + n)), [False] * 2 + [True] * (n - 2), f"s{n}") for n in (6, 90, 11)]


def trainer_of(model: Any, *, packing: bool = False, autocast: Any = nullcontext) -> Any:
    setup = SimpleNamespace(packing=packing, objective=NextToken())
    return SimpleNamespace(model=model, autocast=autocast, setup=setup)


@pytest.mark.parametrize("packing", [False, True])
def test_a_sound_model_passes_and_is_left_as_it_was(packing: bool, tiny_model, sequences):
    tiny_model.module.train()
    before = copy.deepcopy(tiny_model.module.state_dict())
    check_model(trainer_of(tiny_model, packing=packing), sequences)
    assert tiny_model.module.training
    assert all(torch.equal(before[name], value) for name, value in tiny_model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.module.parameters())


def test_a_sound_model_passes_in_bf16(tiny_model, sequences):
    """Autocast caches casts of trainable weights, which must not hide that they move."""
    check_model(trainer_of(tiny_model, autocast=lambda: torch.autocast("cpu", torch.bfloat16)), sequences)


def test_probes_are_short_and_keep_their_targets(sequences):
    probes = choose_probes(sequences)
    assert [len(p) for p in probes] == [6, 11, 48]
    assert all(p.num_targets for p in probes)


def test_a_declared_parameter_the_loss_never_uses(tiny_model, sequences):
    tiny_model.module.unused = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="gradient does not reach 1 parameters, such as unused"):
        check_gradients(trainer_of(tiny_model), tuple(sequences))


def test_an_adapter_that_is_not_applied(tiny_model, sequences):
    tiny_model.module.requires_grad_(False)
    tiny_model.module.adapter = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="logits do not change"):
        check_movement(tiny_model, collate(sequences, 2))


def test_attention_across_packed_samples(tiny_model, sequences):
    """A model that ignores where samples begin is caught before it trains on garbage."""
    forward = tiny_model.module.forward
    tiny_model.module.forward = lambda input_ids, position_ids=None, **rest: forward(input_ids, **rest)
    check_model(trainer_of(tiny_model), sequences)
    with pytest.raises(TrainingError, match=r"depends on the batch.*packed.*--data.packing false"):
        check_model(trainer_of(tiny_model, packing=True), sequences)


def test_no_trained_token(tiny_model):
    with pytest.raises(TrainingError, match="No sample has a trained token"):
        check_model(trainer_of(tiny_model), [TokenSequence([3, 4], [False, False])])
