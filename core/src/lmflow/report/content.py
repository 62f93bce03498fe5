"""What a report says, read from a run's directory; anything may be missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow import run_directory as place

SHOWN_COMPARISONS = 20
STEP_KEYS = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
ITERATION_KEYS = (
    "reward_mean",
    "reward_kept_mean",
    "heldout_reward",
    "distinct_1",
    "distinct_2",
    "response_length",
    "stopped_share",
    "kl",
    "seconds_sampling",
    "seconds_scoring",
    "seconds_training",
)
COUNTERS = {"step", "iteration", "tokens", "seconds", "kept", "iteration_loss"}

Point = tuple[float, float]


@dataclass(frozen=True)
class Content:
    """A run as the page shows it: its record, recipe text, metric curves by name, and before/after answers."""

    name: str
    record: Mapping[str, Any]
    recipe: str
    curves: Mapping[str, Sequence[Point]]
    comparisons: Sequence[Mapping[str, Any]]
    comparison_count: int

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The flat summary of run.json."""
        found: Mapping[str, Any] = self.record.get("metrics", {})
        return found

    def pair(self, name: str) -> tuple[float, float] | None:
        """A metric before and after, None unless both are known."""
        before, after = self.metrics.get(f"{name}_before"), self.metrics.get(f"{name}_after")
        return None if before is None or after is None else (before, after)

    @property
    def other_curves(self) -> list[str]:
        """Names of curves that no section of the page knows: what plugins add."""
        known = {*STEP_KEYS, *ITERATION_KEYS, *COUNTERS}
        return [name for name, points in self.curves.items() if name not in known and len(points) > 1]


def read_content(directory: Path) -> Content:
    """Everything the page needs; files that are missing or cut short count as empty."""
    rows = list(read_lines(directory / place.METRICS))
    comparisons = list(read_lines(directory / place.COMPARISON))
    recipe = directory / place.RECIPE
    return Content(
        name=directory.resolve().name,
        record=place.read_record(directory),
        recipe=recipe.read_text(encoding="utf-8") if recipe.exists() else "",
        curves=to_curves(rows),
        comparisons=comparisons[:SHOWN_COMPARISONS],
        comparison_count=len(comparisons),
    )


def read_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    """The objects of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def to_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Each metric over its steps (over its iterations, for lines of an iteration)."""
    curves: dict[str, list[Point]] = {}
    for row in rows:
        at = row.get("iteration", row.get("step", 0))
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, []).append((at, value))
    return curves
