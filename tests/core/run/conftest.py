"""A small run: few records, the tiny model, three steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Callable[..., Any]:
    """Makes a resolved recipe of a run of three steps; options are given with __ for dots, None leaves one out."""
    from lmflow.plugins import load_plugins
    from lmflow.testing.runs import resolve_settings, write_records

    place = tmp_path_factory.mktemp("records")
    rows = [{"prompt": f"Say {i}", "answer": f"{i} {i}"} for i in range(12)]
    settings = {
        "model.name": "pretrained",
        "model.path": str(model_directory),
        "data.name": "prompt",
        "data.path": str(write_records(place / "train.jsonl", rows[:9])),
        "data.validation": str(write_records(place / "heldout.jsonl", rows[9:])),
        "training.device": "cpu",
        "training.precision": "fp32",
        "training.batch_size": 3,
        "aligner.max_new_tokens": 2,
        "aligner.heldout_prompts": 2,
    }

    def make(plugins: Any = None, **changes: Any) -> Any:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        given = {path: value for path, value in {**settings, **named}.items() if value is not None}
        return resolve_settings(plugins or load_plugins(), given)

    return make
