"""The files of a run's directory: their names, and how they are read and replaced."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmflow.atomic import remove_atomically, write_atomically

RECIPE = "recipe.yaml"
RECORD = "run.json"
METRICS = "metrics.jsonl"
COMPARISON = "comparison.jsonl"
SAMPLES = "samples"
CHECKPOINTS = "checkpoints"
REPORT = "report.html"
TRACKERS = "trackers"
STAGES = "stages"
"""The folder that has a run's directory for each stage of a recipe."""
DAMAGED = ".damaged"
"""How the name of a file ends that could not be read, and was set aside."""
LOCK = ".lock"


def read_record(path: Path) -> dict[str, Any]:
    """run.json of the run at `path`, empty if there is none, or none that can be read."""
    return read_object(path / RECORD) or {}


def read_object(file: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None if it is not there, or holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def holds_run(path: Path) -> bool:
    """Whether there is a run at `path`, in whatever state."""
    return (path / RECORD).exists() or (path / RECIPE).exists()


def whole_run(path: Path) -> Path:
    """What the run at `path` is a part of, and is continued with: the run of all stages where it is one of them."""
    above = path.parent.parent
    return above if path.parent.name == STAGES and holds_run(above) else path


def resume_command(directory: Path) -> str:
    """What to type to go on with the run at `directory`, or with the whole that it is a stage of."""
    return f"lmflow run --resume --output {shlex.quote(str(whole_run(directory)))}"


def set_aside(path: Path) -> str:
    """Put a damaged file under another name, in the place of one set aside before; a sentence that says so."""
    aside = path.with_name(path.name + DAMAGED)
    if aside.exists():
        remove_atomically(aside)
    os.replace(path, aside)
    return f"{path} was damaged: it is kept as {aside.name}"


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite, which JSON does not have, are null."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
