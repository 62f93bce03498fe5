"""Supervised fine-tuning: what it trains on, for how long, and what it tells before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.builtin.sft import Sft
from lmflow.components import PlanContext
from lmflow.data.sample import Dataset, Message, Sample
from lmflow.recipe.sections.data import DataOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.testing.contexts import align_context, quiet_log, trainer_setup
from lmflow.training.trainer import Trainer


@pytest.fixture
def data() -> Dataset:
    samples = [
        Sample((Message("user", f"say {i}"), Message("assistant", f"{i} and {i}")), source=f"{i}") for i in range(7)
    ]
    return Dataset(samples, [], DataOptions(path="x.jsonl"))


@pytest.fixture
def make(tiny_model: Any, tmp_path: Path) -> Callable[..., Trainer]:
    def build(**options: Any) -> Trainer:
        training = TrainingOptions(**{"batch_size": 2, "learning_rate": 1e-3, **options})
        return Trainer(tiny_model, training, quiet_log(), tmp_path / "checkpoints", trainer_setup())

    return build


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 4), ({"epochs": 2}, 8), ({"epochs": 0.5}, 2), ({"max_steps": 3, "epochs": 9}, 3)],
    ids=str,
)
def test_it_takes_the_steps_it_tells(options: dict[str, Any], steps: int, make: Callable[..., Trainer], data: Dataset):
    trainer = make(**options)
    context = PlanContext(model=trainer.model, data=data, options=trainer.options)
    told = Sft().workload(context)
    Sft().align(align_context(trainer, data))
    assert trainer.step == trainer.total_steps == told.steps == steps
    assert [item.source for item in told.items] == [str(i) for i in range(7)]  # type: ignore[union-attr]


def test_it_leaves_a_checkpoint_and_says_what_it_read(make: Callable[..., Trainer], data: Dataset, tmp_path: Path):
    trainer = make()
    Sft().align(align_context(trainer, data))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]
    assert 0 < trainer.log.metrics["trained_token_share"] < 1
    assert trainer.log.tables["lengths"]["kept"] == 7
    assert len(trainer.log.notes) == 1


def test_it_lowers_the_loss_of_what_it_trains_on(make: Callable[..., Trainer], data: Dataset):
    trainer = make(epochs=4)
    items = Sft().workload(PlanContext(model=trainer.model, data=data, options=trainer.options)).items
    before = trainer.evaluate(items)
    Sft().align(align_context(trainer, data))
    assert trainer.evaluate(items) < before


def test_its_objective_and_items_are_the_default_ones(tiny_model: Any, data: Dataset):
    context: Any = None  # nothing of the run decides it
    assert Sft().objective(context) is None
    assert Sft().items(tiny_model, data.train, data) is None
