"""What `Trainer.fit` is asked for, what it refuses, and what its checkpoints keep for an aligner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.data.sample import TokenSequence
from lmflow.errors import Interrupted, TrainingError
from lmflow.training.setup import check_budget

Make = Callable[..., Any]


def state_of(run: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "checkpoints" / f"step-{step:06d}" / "state.json").read_text())
    return found


# The budget


@pytest.mark.parametrize("steps", [0, -1])
def test_no_step_is_an_error(steps: int, make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer()
    with pytest.raises(TrainingError, match=rf"fit was given 12 items and {steps} steps, so it takes none"):
        trainer.fit(few_sequences, steps=steps)
    assert trainer.step == 0


def test_no_item_is_an_error(make_trainer: Make):
    with pytest.raises(TrainingError, match="fit was given 0 items and 3 steps"):
        make_trainer().fit([], steps=3)


def test_a_start_before_the_steps_taken_is_an_error_without_a_resume(
    make_trainer: Make, few_sequences: list[TokenSequence]
):
    """An aligner that says `start=0` in each of its iterations would train in the first one alone."""
    trainer = make_trainer()
    trainer.plan(4)
    trainer.fit(few_sequences, steps=2, start=0)
    with pytest.raises(TrainingError, match=r"asked for the steps up to 2, and the trainer is at step 2 .*`start` out"):
        trainer.fit(few_sequences, steps=2, start=0)
    trainer.fit(few_sequences, steps=2)
    assert trainer.step == 4


def test_a_start_in_the_midst_takes_what_is_left(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer()
    trainer.plan(5)
    trainer.fit(few_sequences, steps=2)
    trainer.fit(few_sequences, steps=5, start=0)
    assert trainer.step == 5


@pytest.mark.parametrize(
    ("end", "step", "restored", "allowed"),
    [
        (3, 0, 0, True),
        (3, 3, 3, True),  # all of it was done before the resume
        (3, 5, 5, True),
        (3, 4, 3, True),  # the resume was at its end, and a step has been taken since by another call
        (3, 3, 2, False),  # the resume was in its midst, and it is asked for twice
        (3, 3, 0, False),
    ],
)
def test_what_was_taken_before_a_resume_is_no_mistake(end: int, step: int, restored: int, allowed: bool):
    if allowed:
        check_budget(10, 3, end, step, restored)
    else:
        with pytest.raises(TrainingError, match=f"up to {end}, and the trainer is at step {step} already"):
            check_budget(10, 3, end, step, restored)


def test_a_call_that_was_complete_before_the_resume_takes_no_step_and_goes_on(
    make_trainer: Make, few_sequences: list[TokenSequence], metrics_of: Any
):
    first = make_trainer()
    first.plan(4)
    first.fit(few_sequences, steps=2, start=0)
    first.checkpoint()
    second = make_trainer(resume=True)
    second.plan(4)
    before = {name: p.detach().clone() for name, p in second.model.module.named_parameters()}
    loss = second.fit(few_sequences, steps=2, start=0)
    assert loss != loss, "there is no mean loss of no step"
    assert second.step == 2
    assert all((before[name] == p).all() for name, p in second.model.module.named_parameters())
    second.fit(few_sequences, steps=2, start=2)
    assert [line["step"] for line in metrics_of("run")] == [1, 2, 3, 4]


def test_the_mean_loss_of_its_steps_is_returned(
    make_trainer: Make, few_sequences: list[TokenSequence], metrics_of: Any
):
    trainer = make_trainer()
    trainer.plan(5)
    trainer.fit(few_sequences, steps=2)
    mean = trainer.fit(few_sequences, steps=3)
    assert mean == pytest.approx(sum(line["loss"] for line in metrics_of("run")[2:]) / 3)


def test_items_are_repeated_in_another_order_each_epoch(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer()
    epochs = list(trainer._steps(12, 0, 6, 0))
    assert sorted(i for step in epochs[:3] for i in step) == sorted(i for step in epochs[3:] for i in step)
    assert epochs[:3] != epochs[3:]
    assert list(trainer._steps(12, 0, 3, 1)) == epochs[3:], "first_epoch begins with the order of that epoch"


def test_without_checkpoints_none_is_left_even_by_an_interrupt(
    make_trainer: Make, few_sequences: list[TokenSequence], tmp_path: Path
):
    trainer = make_trainer(checkpoint_every=1)
    trainer.plan(3)
    trainer.fit(few_sequences, steps=2, checkpoints=False)
    trainer.log.stop_signal = 2
    with pytest.raises(Interrupted):
        trainer.fit(few_sequences, steps=1, checkpoints=False)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert trainer.step == 3


# The aligner's state


def test_what_is_remembered_is_in_every_checkpoint_from_then_on(
    make_trainer: Make, few_sequences: list[TokenSequence], tmp_path: Path
):
    trainer = make_trainer(checkpoint_every=1, keep_checkpoints=9)
    trainer.plan(5)
    trainer.fit(few_sequences, steps=1)
    trainer.remember({"iteration": 1, "kept": ["a"]})
    trainer.fit(few_sequences, steps=2)
    trainer.remember({"iteration": 2})
    trainer.fit(few_sequences, steps=1)
    trainer.checkpoint()
    run = tmp_path / "run"
    assert state_of(run, 1)["aligner"] == {}
    assert state_of(run, 2)["aligner"] == state_of(run, 3)["aligner"] == {"iteration": 1, "kept": ["a"]}
    assert state_of(run, 4)["aligner"] == {"iteration": 2}


def test_an_interrupt_s_checkpoint_has_it_too_and_it_comes_back(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer()
    assert trainer.restored == {}
    trainer.plan(3)
    trainer.remember({"iteration": 7, "beta": 0.25})
    trainer.log.stop_signal = 2
    with pytest.raises(Interrupted):
        trainer.fit(few_sequences, steps=3)
    resumed = make_trainer(resume=True)
    assert (resumed.step, resumed.restored) == (1, {"iteration": 7, "beta": 0.25})


def test_what_was_restored_stays_in_checkpoints_until_something_else_is_remembered(
    make_trainer: Make, few_sequences: list[TokenSequence]
):
    trainer = make_trainer()
    trainer.plan(2)
    trainer.remember({"iteration": 3})
    trainer.fit(few_sequences, steps=1)
    trainer.checkpoint()
    again = make_trainer(resume=True)
    again.plan(2)
    again.fit(few_sequences, steps=1)
    again.checkpoint()
    assert make_trainer(resume=True).restored == {"iteration": 3}


def test_later_changes_of_what_was_given_are_not_remembered(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer, state = make_trainer(), {"iteration": 1}
    trainer.remember(state)
    state["iteration"] = 2
    trainer.checkpoint()
    assert make_trainer(resume=True).restored == {"iteration": 1}


def test_figures_and_tokens_come_back(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer()
    trainer.plan(2)
    trainer.fit(few_sequences, steps=2)
    trainer.log.metrics["reward_mean"] = 0.5
    trainer.checkpoint()
    resumed = make_trainer(resume=True)
    assert resumed.log.metrics["reward_mean"] == 0.5
    assert resumed.tokens == trainer.tokens > 0


def test_where_there_is_no_checkpoint_all_steps_are_forgotten(
    make_trainer: Make, few_sequences: list[TokenSequence], metrics_of: Any
):
    trainer = make_trainer()
    trainer.plan(2)
    trainer.fit(few_sequences, steps=2)
    resumed = make_trainer(resume=True)
    assert (resumed.step, metrics_of("run")) == (0, [])


# Inferencers are told


def test_the_weights_version_counts_steps_and_restores(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer(keep_start_weights=True)
    trainer.plan(2)
    trainer.fit(few_sequences, steps=2)
    assert trainer.model.version == 2
    with trainer.start_weights():
        assert trainer.model.version == 3
    assert trainer.model.version == 4
    trainer.checkpoint()
    assert make_trainer(resume=True).model.version > 0


def test_start_weights_are_those_from_before_the_first_step(make_trainer: Make, few_sequences: list[TokenSequence]):
    trainer = make_trainer(keep_start_weights=True)
    start = {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}
    trainer.plan(2)
    trainer.fit(few_sequences, steps=2)
    end = {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}
    with trainer.start_weights():
        assert all((p == start[name]).all() for name, p in trainer.model.module.named_parameters())
    assert all((p == end[name]).all() for name, p in trainer.model.module.named_parameters())
    assert any((end[name] != start[name]).any() for name in start)
    with pytest.raises(TrainingError, match="compares_with_start"), make_trainer("other").start_weights():
        pass
