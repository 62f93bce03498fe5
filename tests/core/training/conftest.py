"""What tests of the training loop share: a tiny model, sequences for it, and trainers around both."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def few_sequences() -> list[Any]:
    """12 sequences of 4 to 20 tokens, of which different shares are trained."""
    from lmflow.data.sample import TokenSequence

    made, draw = [], random.Random(3)
    for i in range(12):
        length = draw.randint(4, 20)
        prompt = draw.randint(1, length - 1)
        ids = [draw.randint(3, 250) for _ in range(length)]
        made.append(TokenSequence(ids, [False] * prompt + [True] * (length - prompt), f"s{i}"))
    return made


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_model: Any) -> Callable[..., Any]:
    """Makes a trainer around a copy of the tiny model; what is no option of training goes into its `Setup`."""
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.run.directory import RunDirectory
    from lmflow.run.log import RunLog
    from lmflow.testing.contexts import trainer_setup
    from lmflow.training.trainer import Trainer

    def build(directory: str = "run", *, model: Any = None, resume: bool = False, **settings: Any) -> Any:
        ours = {name: settings.pop(name) for name in list(settings) if name in TrainingOptions.model_fields}
        options = TrainingOptions(**{"batch_size": 4, "learning_rate": 1e-2, **ours})
        place = RunDirectory(tmp_path / directory, resume=resume)
        place.write_record({"status": "running"})
        log = RunLog(place, lambda *_, **__: None)
        optimizer = settings.pop("optimizer", None)
        setup = trainer_setup(**{"schedule": "constant", "warmup": 0, **settings})
        if optimizer is not None:
            setup = replace(setup, optimizer=optimizer)
        trainer = Trainer(copy.deepcopy(model or tiny_model), options, log, place.checkpoints, setup)
        if resume:
            trainer.restore()
        place.close()
        return trainer

    return build


@pytest.fixture
def metrics_of(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """The lines of metrics.jsonl of a trainer's directory."""
    return lambda name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
