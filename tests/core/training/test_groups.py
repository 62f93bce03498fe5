"""Items of several sequences: kept together, told apart, and trained as a plain loop over pairs would."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch, collate, collate_packed
from lmflow.data.sample import TokenSequence
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.testing.contexts import quiet_log, trainer_setup
from lmflow.training.loss import negative_log_likelihood, sums_by_sequence, target_logprobs
from lmflow.training.objective import FunctionObjective
from lmflow.training.trainer import Trainer

Pair = tuple[TokenSequence, TokenSequence]
BETA = 0.5


def preference_loss(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> Tensor:
    """The loss of DPO (arXiv 2305.18290, equation 7), summed over pairs."""
    sums = sums_by_sequence(*target_logprobs(forward, unwrapped, batch), batch)
    gains = sums - torch.tensor([sequence.objective_inputs["reference"] for sequence in batch.sequences])
    return -nn.functional.logsigmoid(BETA * (gains[::2] - gains[1::2])).sum()


@pytest.fixture
def pairs() -> list[Pair]:
    """Twelve pairs of sequences of different lengths, of which different shares are trained."""
    draw = random.Random(0)

    def one(name: str) -> TokenSequence:
        length, prompt = draw.randint(6, 24), draw.randint(1, 4)
        ids = [draw.randint(3, 300) for _ in range(length)]
        trained = [False] * prompt + [True] * (length - prompt)
        return TokenSequence(ids, trained, name, objective_inputs={"reference": -draw.uniform(10, 100)})

    return [(one(f"{i}+"), one(f"{i}-")) for i in range(12)]


@pytest.fixture
def make(tiny_model: Any, tmp_path: Path) -> Callable[..., Trainer]:
    def build(packing: bool = False, schedule: str = "cosine", **settings: Any) -> Trainer:
        options = TrainingOptions(**{"batch_size": 4, "learning_rate": 1e-3, **settings})
        setup = trainer_setup(schedule, warmup=0, packing=packing, max_length=64)
        return Trainer(copy.deepcopy(tiny_model), options, quiet_log(), tmp_path / "checkpoints", setup)

    return build


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}


def fit(trainer: Trainer, pairs: list[Pair], **options: Any) -> float:
    trainer.plan(6)
    return trainer.fit(
        pairs,
        steps=trainer.total_steps or trainer.steps_for(len(pairs), 2),
        start=0,
        objective=FunctionObjective(preference_loss, "item"),
        **options,
    )


def test_sums_are_those_of_each_sequence(tiny_model: Any, pairs: list[Pair]):
    module = tiny_model.module
    flat = [sequence for pair in pairs[:4] for sequence in pair]
    alone = torch.stack([target_logprobs(module, module, collate([each], 0))[0].sum() for each in flat])
    for batch in (collate(flat, 0), collate_packed([flat[:3], flat[3:]], 0)):
        assert list(batch.sequences) == flat
        sums = sums_by_sequence(*target_logprobs(module, module, batch), batch)
        torch.testing.assert_close(sums, alone, rtol=1e-5, atol=1e-5)


def test_segments_by_hand():
    one, two = (TokenSequence([1] * n, [True] * n) for n in (2, 3))
    assert collate([one, two], 9).segment_ids.tolist() == [[0, 0, -1], [1, 1, 1]]
    assert collate_packed([[one, two], [one]], 9).segment_ids.tolist() == [[0, 0, 1, 1, 1], [2, 2, -1, -1, -1]]


def test_pairs_train_as_a_plain_loop_would(make: Callable[..., Trainer], tiny_model: Any, pairs: list[Pair]):
    trainer = make(batch_size=12, max_grad_norm=None, schedule="constant")
    module = copy.deepcopy(tiny_model.module).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    trainer.plan(3)
    found = [
        trainer.fit(
            pairs,
            steps=trainer.steps_for(len(pairs), 1),
            objective=FunctionObjective(preference_loss, "item"),
            checkpoints=False,
        )
        for _ in range(3)
    ]
    expected = []
    for _ in range(3):
        total = torch.zeros(())
        for chosen, rejected in pairs:  # the formula, one pair at a time
            logprob = [target_logprobs(module, module, collate([s], 0))[0].sum() for s in (chosen, rejected)]
            margin = (logprob[0] - chosen.objective_inputs["reference"]) - (
                logprob[1] - rejected.objective_inputs["reference"]
            )
            total = total - torch.log(torch.sigmoid(BETA * margin.double())).float()
        (total / len(pairs)).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total.item() / len(pairs))
    assert found == pytest.approx(expected, rel=1e-4)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(weights(trainer)[name], parameter, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "split", [{"micro_batch_size": 1}, {"micro_batch_size": 2}, {"micro_batch_size": 5}, {"packing": True}]
)
def test_however_pairs_are_put_into_batches_they_train_alike(
    make: Callable[..., Trainer], pairs: list[Pair], split: dict[str, Any]
):
    whole, other = make(), make(**split)
    assert fit(other, pairs) == pytest.approx(fit(whole, pairs), rel=1e-5)
    expected = weights(whole)
    for name, found in weights(other).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=2e-5)


def test_a_pair_is_never_parted(make: Callable[..., Trainer], pairs: list[Pair]):
    seen: list[list[str]] = []

    def watch(forward: nn.Module, unwrapped: nn.Module, batch: Batch) -> Tensor:
        seen.append([sequence.source for sequence in batch.sequences])
        return preference_loss(forward, unwrapped, batch)

    for settings in ({"micro_batch_size": 3}, {"packing": True}):
        seen.clear()
        trainer = make(**settings)
        trainer.plan(3)
        trainer.fit(
            pairs, steps=trainer.steps_for(len(pairs), 1), objective=FunctionObjective(watch, "item"), checkpoints=False
        )
        assert sorted(name for names in seen for name in names[::2]) == sorted(f"{i}+" for i in range(12))
        assert all(b == a.replace("+", "-") for names in seen for a, b in zip(names[::2], names[1::2], strict=True))


def test_the_mean_is_per_item_or_per_token(make: Callable[..., Trainer], pairs: list[Pair]):
    flat = [sequence for pair in pairs for sequence in pair]
    tokens = sum(sequence.num_targets for sequence in flat)
    losses = []
    for per in ("token", "item"):
        trainer = make(batch_size=len(flat))
        trainer.plan(1)
        objective = FunctionObjective(negative_log_likelihood, per)
        losses.append(trainer.fit(flat, steps=1, checkpoints=False, objective=objective))
    assert losses[1] / losses[0] == pytest.approx(tokens / len(flat), rel=1e-5)


def test_facts_stay_with_what_is_cut():
    whole = TokenSequence([1, 2, 3], [True] * 3, "s", objective_inputs={"reference": -1.0})
    assert whole.cut(0, 2) == replace(whole, ids=[1, 2], loss_mask=[True, True])
