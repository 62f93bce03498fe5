"""What every tracker keeps of a run: points of curves, each once however often the run is resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmflow.atomic import write_atomically
from lmflow.recipe.recipe import Recipe, as_dict
from lmflow.run_files import METRICS, TRACKERS, read_record

PLACES = ("step", "iteration")
"""Entries of a line of metrics that say where on the curves it stands."""


@dataclass
class Curves:
    """The newest step each curve has reached; points come in order of steps, so that nothing else need be known."""

    reached: dict[str, int] = field(default_factory=dict)

    def advance(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of `values` at `step` that lie beyond what their curves have reached, which they now reach."""
        new = {tag: value for tag, value in values.items() if step > self.reached.get(tag, -1)}
        self.reached.update(dict.fromkeys(new, step))
        return new


def points(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics, by tag: `train/`, `heldout/` or `iteration/` and the metric's name."""
    own = "iteration" if "iteration" in metrics else "train"
    numbers = numeric({name: value for name, value in metrics.items() if name not in PLACES})
    return {_tag(name, own): value for name, value in numbers.items()}


def numeric(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among `metrics`."""
    return {name: float(value) for name, value in metrics.items() if _is_finite_number(value)}


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tag(name: str, own: str) -> str:
    for prefix in ("eval_", "heldout_"):
        if name.startswith(prefix):
            return f"heldout/{name.removeprefix(prefix)}"
    return f"{own}/{name}"


def written_lines(directory: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of metrics the run at `directory` has written; one that a killed run left torn is passed over."""
    path = directory / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def settings(recipe: Recipe) -> dict[str, str]:
    """Every value of the recipe as text by dotted path, without those of trackers, which change nothing of the run."""
    sections = as_dict(recipe)
    del sections["trackers"]
    return {path: value for section, values in sections.items() for path, value in _flat(section, values)}


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(f"{path}.{key}", each)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def versions(directory: Path) -> Mapping[str, str]:
    """Versions of packages and plugins, as the run's record holds them."""
    record = read_record(directory)
    return {**record.get("versions", {}), **record.get("plugins", {})}


def remember(directory: Path, tracker: str, state: Mapping[str, str]) -> None:
    """Keep in the run's directory what `tracker` needs to continue; it is deleted where the run is overwritten."""
    path = directory / TRACKERS / f"{tracker}.json"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(state, indent=2) + "\n")


def recall(directory: Path, tracker: str) -> Mapping[str, str]:
    """What `tracker` kept in the run's directory; empty in a new run."""
    path = directory / TRACKERS / f"{tracker}.json"
    state: Mapping[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return state
