"""A run's checkpoints: saved, restored, and the best of them taken as the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.ddp import DDP
from lmflow.errors import TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
from lmflow.training import checkpoints as module
from lmflow.training.checkpoints import Checkpoints, set_weights


@pytest.fixture
def strategy() -> DDP:
    """A linear layer and its AdamW, after a step."""
    torch.manual_seed(0)
    return after_a_step(DDP(nn.Linear(2, 3), adamw, Processes(), None))


def adamw(trainable: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable.values(), lr=0.1)


def after_a_step(strategy: DDP) -> DDP:
    strategy.backward(strategy.forward(torch.ones(1, 2)).square().sum())
    strategy.step()
    return strategy


@pytest.fixture
def events() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def make(tmp_path: Path, events: list[tuple[str, Any]]) -> Callable[..., Checkpoints]:
    def build(**options: Any) -> Checkpoints:
        log = RunLog(None, lambda event, **values: events.append((event, values)))
        build.log = log  # type: ignore[attr-defined]
        return Checkpoints(tmp_path / "checkpoints", TrainingOptions(**options), Processes(), log)

    return build


def saved(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def test_what_was_saved_is_restored_into_another_strategy(make: Callable[..., Checkpoints], strategy: DDP):
    checkpoints = make()
    checkpoints.save(strategy, {"step": 3, "aligner": {"iteration": 1}})
    torch.manual_seed(1)
    other = DDP(nn.Linear(2, 3), adamw, Processes(), None)
    assert checkpoints.restore(other) == {"step": 3, "aligner": {"iteration": 1}}
    for name, value in strategy.weights().items():
        assert torch.equal(other.weights()[name], value)
    for one, two in ((strategy, other), (after_a_step(strategy), after_a_step(other))):
        states = one.optimizer_state(), two.optimizer_state()
        assert states[0].keys() == states[1].keys() == {"weight", "bias"}
        assert all(torch.equal(states[0][n][k], states[1][n][k]) for n in states[0] for k in states[0][n])
    assert torch.equal(strategy.weights()["weight"], other.weights()["weight"]), "they go on alike, to the bit"


def test_a_parameter_without_optimizer_state_stays_without(make: Callable[..., Checkpoints], strategy: DDP):
    """What rests in a rotation has none; restoring does not make up zeros for it."""
    strategy.optimizer.state.pop(strategy.trainable["bias"])
    checkpoints = make()
    checkpoints.save(strategy, {"step": 1})
    other = DDP(nn.Linear(2, 3), adamw, Processes(), None)
    checkpoints.restore(other)
    assert other.optimizer_state().keys() == {"weight"}


def test_nothing_to_restore(make: Callable[..., Checkpoints], strategy: DDP):
    before = strategy.weights()
    assert make().restore(strategy) is None
    assert all(torch.equal(before[name], value) for name, value in strategy.weights().items())


def test_the_newest_are_kept_and_plugins_are_told(
    make: Callable[..., Checkpoints], strategy: DDP, events: list[tuple[str, Any]], tmp_path: Path
):
    checkpoints = make(keep_checkpoints=2)
    for step in (2, 4, 6):
        checkpoints.save(strategy, {"step": step})
    assert saved(tmp_path) == ["step-000004", "step-000006"]
    assert [(event, values["path"].name) for event, values in events] == [
        ("lmflow_checkpoint_saved", f"step-00000{step}") for step in (2, 4, 6)
    ]


def test_the_best_is_kept_beside_the_newest(make: Callable[..., Checkpoints], strategy: DDP, tmp_path: Path):
    checkpoints = make(keep_checkpoints=1, result="best", evaluate_every=1)
    assert checkpoints.is_best(9.0), "nothing was evaluated before"
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, None)):
        checkpoints.save(strategy, {"step": step, "eval_loss": loss})
    assert saved(tmp_path) == ["step-000002", "step-000004"]
    assert not checkpoints.is_best(1.0), "the earlier of two that are alike stays the best"
    assert checkpoints.is_best(0.99)


def test_the_best_becomes_the_result_and_is_named(make: Callable[..., Checkpoints], strategy: DDP):
    checkpoints = make(result="best", evaluate_every=1)
    checkpoints.save(strategy, {"step": 1, "eval_loss": 0.5})
    best = strategy.weights()
    best = {name: value.clone() for name, value in best.items()}
    checkpoints.save(after_a_step(strategy), {"step": 2, "eval_loss": 0.75})
    assert not torch.equal(strategy.weights()["weight"], best["weight"])
    checkpoints.take_best(strategy)
    assert torch.equal(strategy.weights()["weight"], best["weight"])
    log = make.log  # type: ignore[attr-defined]
    assert log.notes == ["the result is step 1, whose held-out loss was lowest (0.5000)"]
    assert log.metrics["result_step"] == 1


def test_without_an_evaluation_the_last_step_is_the_result(make: Callable[..., Checkpoints], strategy: DDP):
    checkpoints = make(result="best", evaluate_every=1)
    checkpoints.save(strategy, {"step": 1, "eval_loss": None})
    before = strategy.weights()
    checkpoints.take_best(strategy)
    assert torch.equal(before["weight"], strategy.weights()["weight"])
    log = make.log  # type: ignore[attr-defined]
    assert log.notes == ["training.result: no checkpoint was evaluated, so the result is the last step"]
    assert "result_step" not in log.metrics


def test_a_damaged_newest_is_told_of_and_the_one_before_used(
    make: Callable[..., Checkpoints], strategy: DDP, tmp_path: Path
):
    checkpoints = make()
    for step in (1, 2):
        checkpoints.save(strategy, {"step": step})
    (tmp_path / "checkpoints" / "step-000002" / "optimizer.json").write_text("{}")
    assert checkpoints.restore(strategy) == {"step": 1}
    [note] = make.log.notes  # type: ignore[attr-defined]
    assert "step-000002" in note
    assert note.endswith("the checkpoint before it is used")


@pytest.mark.parametrize("names", [["weight"], ["weight", "bias", "other"], ["weight", "bais"]])
def test_other_parameters_are_refused(names: list[str], strategy: DDP):
    before = strategy.weights()["weight"].clone()
    given: dict[str, Tensor] = {name: torch.zeros(3, 2) for name in names}
    with pytest.raises(TrainingError, match="step-000009 holds other parameters than this recipe trains"):
        set_weights(strategy, Path("step-000009"), given)
    assert torch.equal(strategy.weights()["weight"], before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the monotonic clock, as the only value of a list."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_by_default_one_is_due_every_few_minutes(make: Callable[..., Checkpoints], strategy: DDP, clock: list[float]):
    checkpoints = make()
    assert not checkpoints.due(1)
    clock[0] += 299
    assert not checkpoints.due(2)
    clock[0] += 1
    assert checkpoints.due(3)
    checkpoints.save(strategy, {"step": 3})
    assert not checkpoints.due(4)
    clock[0] += 300
    assert checkpoints.due(5)


def test_saving_takes_no_more_than_a_tenth_of_the_time(
    make: Callable[..., Checkpoints], strategy: DDP, clock: list[float], monkeypatch: pytest.MonkeyPatch
):
    def slow(*arguments: Any, **options: Any) -> Path:
        clock[0] += 100
        return save(*arguments, **options)

    save = module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", slow)
    checkpoints = make()
    checkpoints.save(strategy, {"step": 3})
    clock[0] += 899
    assert not checkpoints.due(4)
    clock[0] += 1
    assert checkpoints.due(5)


def test_steps_go_before_minutes(make: Callable[..., Checkpoints], clock: list[float]):
    checkpoints = make(checkpoint_every=3)
    clock[0] += 10_000
    assert [step for step in range(1, 8) if checkpoints.due(step)] == [3, 6]
    never = make(checkpoint_minutes=None)
    never.due(1)
    clock[0] += 10_000
    assert not never.due(2)
