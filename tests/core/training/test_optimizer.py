"""The groups an optimizer is built with, and what their rates and decays do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn

from lmflow.builtin.adamw import AdamW
from lmflow.components import Optimizer, ParameterGroup, Tuner
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.training.optimizer import build_optimizer, parameter_groups


def parameters(**shapes: Sequence[int]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(*shape)) for name, shape in shapes.items()}


def no_rate(name: str) -> None:
    return None


def settings(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Rate and decay of each parameter by name."""
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_matrices_decay_and_biases_and_norms_do_not():
    groups = parameter_groups(parameters(matrix=(2, 3), bias=(3,), norm=(2,), image=(1, 2, 3)), 0.1, 0.01, no_rate)
    assert settings(groups) == {"matrix": (0.1, 0.01), "image": (0.1, 0.01), "bias": (0.1, 0.0), "norm": (0.1, 0.0)}
    assert len(groups) == 2


def test_without_decay_there_is_one_group():
    [group] = parameter_groups(parameters(matrix=(2, 3), bias=(3,)), 0.1, 0.0, no_rate)
    assert group["names"] == ["matrix", "bias"]


def test_names_stand_beside_their_parameters():
    named = parameters(a=(2, 2), b=(2,), c=(3, 3))
    for group in parameter_groups(named, 0.1, 0.5, no_rate):
        assert all(each is named[name] for name, each in zip(group["names"], group["params"], strict=True))
        assert group["initial_lr"] == group["lr"]


def test_a_model_has_rates_of_its_own():
    groups = parameter_groups(parameters(tower=(2, 2), text=(2, 2)), 0.1, 0.0, {"tower": 0.002}.get)
    assert settings(groups) == {"tower": (0.002, 0.0), "text": (0.1, 0.0)}


def test_a_tuner_s_groups_win_over_the_model_and_the_options():
    declared = [
        ParameterGroup(["a"], learning_rate=1.0, weight_decay=0.7),
        ParameterGroup(["b"], learning_rate=2.0),
        ParameterGroup(["c"], weight_decay=0.0),
    ]
    named = parameters(a=(2, 2), b=(2, 2), c=(2, 2), d=(2, 2), e=(2,))
    groups = parameter_groups(named, 0.1, 0.01, {"a": 9.0, "c": 0.3}.get, declared)
    assert settings(groups) == {"a": (1.0, 0.7), "b": (2.0, 0.01), "c": (0.3, 0.0), "d": (0.1, 0.01), "e": (0.1, 0.0)}


def test_a_declared_decay_holds_for_vectors_too():
    groups = parameter_groups(parameters(bias=(3,)), 0.1, 0.01, no_rate, [ParameterGroup(["bias"], weight_decay=0.3)])
    assert settings(groups) == {"bias": (0.1, 0.3)}


def test_a_parameter_in_two_groups_is_refused():
    declared = [ParameterGroup(["a", "b"]), ParameterGroup(["b"], learning_rate=1.0)]
    with pytest.raises(TrainingError, match="puts the parameter b into two groups"):
        parameter_groups(parameters(a=(2, 2), b=(2, 2)), 0.1, 0.0, no_rate, declared)


class Grouping(Tuner):
    """Trains everything, the norms with a rate and the embeddings with a decay of their own."""

    name = "grouping"

    def prepare(self, model: nn.Module) -> nn.Module:
        """All of it."""
        return model.requires_grad_(True)

    def parameter_groups(self, names: Sequence[str]) -> Sequence[ParameterGroup]:
        """Norms and embeddings."""
        norms = [name for name in names if "norm" in name]
        return [
            ParameterGroup(norms, learning_rate=0.5, weight_decay=0.25),
            ParameterGroup([name for name in names if "embed" in name], weight_decay=0.125),
        ]


def test_the_optimizer_of_a_run_has_the_tuner_s_groups(tiny_model: LanguageModel):
    named = dict(tiny_model.module.named_parameters())
    options = TrainingOptions(learning_rate=0.01)
    built = build_optimizer(AdamW(weight_decay=0.03), Grouping(), tiny_model, options, named)
    found = settings(built.param_groups)
    assert found["model.norm.weight"] == (0.5, 0.25)
    assert found["model.embed_tokens.weight"] == (0.01, 0.125)
    assert found["model.layers.0.self_attn.q_proj.weight"] == (0.01, 0.03)
    assert found.keys() == named.keys()
    alike = settings(build_optimizer(AdamW(weight_decay=0.03), None, tiny_model, options, named).param_groups)
    assert alike["model.norm.weight"] == (0.01, 0.0)


def test_the_schedule_scales_every_rate_alike(make_trainer: Callable[..., Any], few_sequences: list[TokenSequence]):
    trainer = make_trainer(tuner=Grouping(), schedule="linear", warmup=2)
    trainer.plan(4)
    groups = trainer._strategy.optimizer.param_groups
    norms, others = (next(g for g in groups if name in g["names"]) for name in ("model.norm.weight", "lm_head.weight"))
    rates: list[tuple[float, float]] = []
    trainer._strategy.optimizer.register_step_pre_hook(lambda *_: rates.append((norms["lr"], others["lr"])))
    trainer.fit(few_sequences, steps=4)
    shares = [trainer.setup.schedule.rate(step, 4) for step in range(4)]
    assert shares[:2] == [0.5, 1.0]
    for found, share in zip(rates, shares, strict=True):
        assert found == pytest.approx((0.5 * share, 0.01 * share))


class Modes(torch.optim.SGD):
    """An optimizer with modes, as schedule-free ones have; what it was told, in order."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, lr=0.1)
        self.calls: list[str] = []

    def train(self) -> None:
        """Before steps."""
        self.calls.append("train")

    def eval(self) -> None:
        """Before evaluations."""
        self.calls.append("eval")

    def step(self, closure: Any = None) -> None:
        """One step, allowed in train mode only."""
        assert self.calls[-1] == "train", "a step was taken in eval mode"
        self.calls.append("train")
        super().step()


class WithModes(Optimizer):
    """Builds it."""

    name = "with-modes"

    def build(self, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer with modes."""
        return Modes(list(groups))


def test_an_optimizer_with_modes_is_switched_around_training_and_evaluation(
    make_trainer: Callable[..., Any], few_sequences: list[TokenSequence]
):
    trainer = make_trainer(optimizer=WithModes(), evaluate_every=2, heldout=few_sequences[8:])
    trainer.validate(few_sequences[8:])  # before there is an optimizer: nothing to switch
    trainer.plan(4)
    trainer.fit(few_sequences[:8], steps=4)
    modes = [mode for mode, _ in groupby(trainer._strategy.optimizer.calls)]
    assert modes == ["train", "eval", "train", "eval", "train", "eval"]
    trainer.validate(few_sequences[8:])
    assert trainer._strategy.optimizer.calls[-1] == "eval"
    assert not trainer.model.module.training
