"""A finished run's directory, which the pages are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORD: dict[str, Any] = {
    "status": "completed",
    "started": "2026-01-01T00:00:00+00:00",
    "seed": 0,
    "device": "cpu",
    "precision": "fp32",
    "wall_seconds": 14.2,
    "peak_memory_bytes": 935_000_000,
    "result": "adapter",
    "versions": {"python": "3.11.9", "torch": "2.15.0"},
    "data": {"path": "a.jsonl", "train": 512, "heldout": 64},
    "notes": ["3 samples were cut to 512 tokens"],
    "seconds": {"training": 4.0, "sampling": 6.0},
    "metrics": {
        "heldout_reward_before": 0.35,
        "heldout_reward_after": 0.65,
        "heldout_accuracy_before": 0.15,
        "heldout_accuracy_after": 0.83,
        "eval_loss_before": 0.28,
        "eval_loss_after": 0.11,
        "generic_loss_before": 3.654,
        "generic_loss_after": 3.662,
        "parameters": 1_000_000,
        "trainable_parameters": 80_000,
        "tokens": 7258,
        "tokens_per_second": 6021.5,
        "steps": 4,
    },
}


ITERATION = {
    "reward_mean": 0.4,
    "reward_kept_mean": 0.9,
    "heldout_reward": 0.5,
    "distinct_1": 0.05,
    "distinct_2": 0.1,
    "response_length": 4.6,
    "stopped_share": 1.0,
    "kl": 0.2,
    "seconds_sampling": 0.5,
    "seconds_scoring": 0.001,
    "seconds_training": 0.3,
}


RECIPE = "model:\n  name: demo\ntuner:\n  name: lora\naligner:\n  name: raft\ndata:\n  name: demo\n"


HOSTILE = '</script><script>alert("x")</script>&amp; ünï 😀'


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def record() -> dict[str, Any]:
    """run.json of the finished run."""
    return {**RECORD, "metrics": dict(RECORD["metrics"])}


@pytest.fixture(name="write_lines")
def _write_lines() -> Callable[[Path, list[dict[str, Any]]], None]:
    """Writes a JSON-lines file."""
    return write_lines


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run of two iterations."""
    directory = tmp_path / "my-run"
    (directory / "samples").mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(RECORD))
    (directory / "recipe.yaml").write_text(RECIPE)
    lines = [{"step": s, "loss": 1 / s, "learning_rate": 1e-3, "grad_norm": 1.0} for s in range(1, 5)]
    lines += [{"step": 2 * i, "iteration": i, **ITERATION, "plugin_metric": i * 0.5} for i in (1, 2)]
    write_lines(directory / "metrics.jsonl", lines)
    compared = {"prompt": HOSTILE, "before": "6 0 8", "after": "0 6 8", "expected": "0 6 8"}
    write_lines(directory / "comparison.jsonl", [{**compared, "reward_before": 0.0, "reward_after": 1.0}] * 12)
    row = {"prompt": "Sort: 3 1", "completion": "1 3", "reward": 1.0, "kept": True, "finish_reason": "eos", "tokens": 4}
    for iteration in (1, 2):
        write_lines(directory / "samples" / f"iteration-{iteration:04d}.jsonl", [row, {**row, "reward": 0.0}])
    return directory
