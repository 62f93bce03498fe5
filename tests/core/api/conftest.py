"""Small runs through the public names alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmflow
from lmflow.testing.runs import RECORDS, write_records


@pytest.fixture
def small(model_directory: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe of two steps on a tiny model."""
    records = write_records(tmp_path / "records.jsonl", RECORDS)
    return {
        "model": {"path": str(model_directory)},
        "data": {"path": records, "validation": 0.25},
        "training": {"max_steps": 2, "batch_size": 3, "device": "cpu"},
        "aligner": {"name": "sft", "heldout_prompts": 2, "max_new_tokens": 4},
    }


@pytest.fixture
def carried_out(small: dict[str, Any], tmp_path: Path) -> Callable[..., lmflow.RunResult]:
    """Runs the small recipe with changes."""

    def run(name: str = "out", **changes: Any) -> lmflow.RunResult:
        return lmflow.run(small, output=tmp_path / name, **changes)

    return run


@pytest.fixture
def model(model_directory: Path) -> Any:
    """The tiny model, loaded through the public name."""
    with lmflow.load_model(model_directory, device="cpu") as loaded:
        yield loaded
