"""What a report says, read from a run's directory; anything may be missing, cut short or spoilt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from lmflow import run_files as place

SHOWN_COMPARISONS = 20
SAMPLES_READ = 2000
"""Rows read of an iteration's samples, enough for a distribution."""
LARGEST = 1e100
KNOWN = {
    *("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second"),
    *("reward_mean", "reward_kept_mean", "heldout_reward", "heldout_accuracy"),
    *("distinct_1", "distinct_2", "response_length", "stopped_share", "kl"),
    *("seconds_sampling", "seconds_scoring", "seconds_training"),
    *("step", "iteration", "tokens", "seconds", "kept", "iteration_loss"),
}
"""Metrics that have a place of their own on the page, or need none."""
COMPARED = {"heldout_reward", "heldout_greedy_reward", "heldout_accuracy", "eval_loss", "generic_loss"}
"""Metrics before and after that have one."""

Point = tuple[float, float]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """A metric over `unit`, "step" or "iteration"."""

    points: Sequence[Point]
    unit: str


@dataclass(frozen=True)
class Comparisons:
    """Held-out prompts before and after: the first few, and counts over all of them.

    `better` and `worse` count by reward and are None without rewards.
    """

    shown: Sequence[Row] = ()
    count: int = 0
    changed: int = 0
    better: int | None = None
    worse: int | None = None


@dataclass(frozen=True)
class Content:
    """A run as the page shows it."""

    name: str
    directory: Path
    record: Row = field(default_factory=dict)
    recipe: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    comparisons: Comparisons = Comparisons()
    samples: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    """Rows of the first and the last iteration that was sampled."""
    gaps: Sequence[str] = ()
    """What is missing or could not be read, in sentences."""

    @property
    def status(self) -> str:
        """How the run ended, "unknown" without a record."""
        return str(self.record.get("status", "unknown"))

    def part(self, name: str) -> Row:
        """A section of run.json, empty if it is not there."""
        found = self.record.get(name)
        return found if isinstance(found, Mapping) else {}

    def metric(self, name: str) -> float | None:
        """A figure of run.json's metrics, None unless it is a finite number."""
        return finite(self.part("metrics").get(name))

    def pair(self, name: str) -> tuple[float, float] | None:
        """A metric before and after, None unless both are known."""
        before, after = self.metric(f"{name}_before"), self.metric(f"{name}_after")
        return None if before is None or after is None else (before, after)

    @property
    def other_pairs(self) -> list[str]:
        """Names of metrics before and after that no section of the page knows: what aligners compare themselves."""
        names = [name.removesuffix("_before") for name in self.part("metrics") if name.endswith("_before")]
        return [name for name in names if name not in COMPARED and self.pair(name)]

    def points(self, name: str) -> Sequence[Point]:
        """A curve's points, none if the run has no such curve."""
        return self.curves[name].points if name in self.curves else ()

    @property
    def other_curves(self) -> dict[str, Curve]:
        """Curves that no section of the page knows: what plugins add."""
        return {name: c for name, c in self.curves.items() if name not in KNOWN and len(c.points) > 1}

    @cached_property
    def components(self) -> dict[str, str]:
        """Each section's component, as the recipe names them; a data format that was recognised, as the record does."""
        recognised = self.part("data").get("format")
        return ({"data": str(recognised)} if recognised else {}) | chosen_names(self.recipe)


def read_content(directory: Path) -> Content:
    """Everything the page needs; files that are missing or unreadable end in `gaps`."""
    gaps: list[str] = []
    record = read_object(directory / place.RECORD, gaps)
    status = str(record.get("status", "unknown"))
    metrics = read_rows(directory / place.METRICS, gaps, "there are no curves", expected=True)
    comparisons = read_rows(
        directory / place.COMPARISON, gaps, "no answers can be compared", expected=status == "completed"
    )
    return Content(
        name=directory.resolve().name,
        directory=directory,
        record=record,
        recipe=read_text(directory / place.RECIPE, gaps),
        curves=to_curves(metrics),
        comparisons=to_comparisons(comparisons),
        samples=read_samples(directory / place.SAMPLES, gaps),
        gaps=gaps,
    )


def read_text(path: Path, gaps: list[str]) -> str:
    """A file's text, empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        gaps.append(f"There is no {path.name}.")
        return ""


def read_object(path: Path, gaps: list[str]) -> Row:
    """A file's JSON object, empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        gaps.append(f"There is no {path.name}: status, versions and summary figures are unknown.")
        return {}
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    gaps.append(f"{path.name} cannot be read as JSON: status, versions and summary figures are unknown.")
    return {}


def read_rows(path: Path, gaps: list[str], without: str, *, expected: bool, most: int | None = None) -> list[Row]:
    """The objects of a JSON-lines file, at most `most`; lines that are none are left out and counted."""
    rows: list[Row] = []
    bad = 0
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in islice(file, most):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    rows.append(row)
                elif line.strip():
                    bad += 1
    except OSError:
        if expected:
            gaps.append(f"There is no {path.name}: {without}.")
    if bad:
        lines = f"{bad:,} lines could not be read and are" if bad > 1 else "1 line could not be read and is"
        gaps.append(f"{path.name}: {lines} left out.")
    return rows


def read_samples(folder: Path, gaps: list[str]) -> dict[int, Sequence[Row]]:
    """Samples of the first and the last iteration that has any, by iteration."""
    files = sorted(folder.glob("iteration-*.jsonl"))
    found: dict[int, Sequence[Row]] = {}
    for path in files[:1] + files[1:][-1:]:
        digits = path.stem.rpartition("-")[2]
        rows = read_rows(path, gaps, "", expected=False, most=SAMPLES_READ)
        if rows and digits.isdigit():
            found[int(digits)] = rows
    return found


def to_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """Each metric over its steps; over its iterations, if it comes in lines of iterations."""
    points: dict[str, list[Point]] = {}
    units: dict[str, str] = {}
    for row in rows:
        unit = "iteration" if "iteration" in row else "step"
        at = finite(row.get(unit))
        if at is None:
            continue
        for name, value in row.items():
            known = finite(value)
            if known is not None and units.setdefault(name, unit) == unit:
                points.setdefault(name, []).append((at, known))
    return {name: Curve(found, units[name]) for name, found in points.items()}


def to_comparisons(rows: Sequence[Row]) -> Comparisons:
    """The rows to show, and how many of all changed, for better or worse."""
    pairs = [(finite(row.get("reward_before")), finite(row.get("reward_after"))) for row in rows]
    scored = [(before, after) for before, after in pairs if before is not None and after is not None]
    return Comparisons(
        shown=rows[:SHOWN_COMPARISONS],
        count=len(rows),
        changed=sum(row.get("before") != row.get("after") for row in rows),
        better=sum(after > before for before, after in scored) if scored else None,
        worse=sum(after < before for before, after in scored) if scored else None,
    )


def loss_curves(content: Content) -> dict[str, Sequence[Point]]:
    """Training loss, and held-out loss with the measurements before the first and after the last step."""
    training, heldout = content.points("loss"), list(content.points("eval_loss"))
    before, after = content.metric("eval_loss_before"), content.metric("eval_loss_after")
    last = max((x for x, _ in training), default=None)
    if before is not None and last is not None:
        heldout.insert(0, (0.0, before))
    if after is not None and last is not None and not (heldout and heldout[-1][0] == last):
        heldout.append((last, after))
    return {"training": training, "held-out": heldout}


def reward_shares(samples: Mapping[int, Sequence[Row]], bins: int = 10) -> tuple[list[str], dict[str, list[float]]]:
    """Labels of reward intervals (or of the few values there are), and each iteration's share of samples in them."""
    rewards = {
        iteration: [value for row in rows if (value := finite(row.get("reward"))) is not None]
        for iteration, rows in samples.items()
    }
    every = [value for values in rewards.values() for value in values]
    if not every:
        return [], {}
    distinct = sorted(set(every))
    if len(distinct) <= bins:
        labels = [f"{value:.3g}" for value in distinct]
        index = {value: at for at, value in enumerate(distinct)}.__getitem__
    else:
        low, width = distinct[0], (distinct[-1] - distinct[0]) / bins
        labels = [f"{low + width * at:.2g}" for at in range(bins)]

        def index(value: float) -> int:
            return min(bins - 1, int((value - low) / width))

    shares = {}
    for iteration, values in rewards.items():
        counts = [0] * len(labels)
        for value in values:
            counts[index(value)] += 1
        if values:
            shares[f"iteration {iteration}"] = [count / len(values) for count in counts]
    return labels, shares


def chosen_names(recipe: str) -> dict[str, str]:
    """Each section's component, from the recipe's text."""
    import yaml

    try:
        parsed = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    sections = {str(slot): part for slot, part in parsed.items() if isinstance(part, dict)}
    return {slot: str(part["name"]) for slot, part in sections.items() if part.get("name")}


def finite(value: Any) -> float | None:
    """`value` if it is a finite number of a size that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None
