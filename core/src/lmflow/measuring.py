"""Measuring a model with an evaluator, and writing down what it found."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.components import Evaluation, Evaluator, Inferencer
from lmflow.errors import RunDirectoryError
from lmflow.run_directory import REPORT, write_atomically

if TYPE_CHECKING:
    from lmflow.data.sample import Sample
    from lmflow.journal import Journal
    from lmflow.models import LanguageModel

RESULTS = "results.json"
ROWS = "rows.jsonl"


def measure(
    model: LanguageModel, evaluator: Evaluator, samples: Sequence[Sample], inferencer: Inferencer, journal: Journal
) -> tuple[Evaluation, dict[str, Any]]:
    """What the evaluator found, and a record of it: its options, the metrics, what the inferencer counted, versions."""
    from lmflow.run import versions

    started = time.perf_counter()
    evaluation = evaluator.evaluate(model, samples, inferencer, journal)
    return evaluation, {
        "evaluator": {"name": evaluator.name, **evaluator.model_dump(mode="json")},
        "records": len(samples),
        "metrics": dict(evaluation.metrics),
        "inferencer_figures": dict(inferencer.figures()),
        "notes": list(journal.notes),
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
    }


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Raise RunDirectoryError where results stand already, or a file is in the way."""
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file; --output takes a directory")
    if (directory / RESULTS).exists() and not overwrite:
        raise RunDirectoryError(f"{directory} holds results already; replace them with --overwrite")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RESULTS).exists():
        raise RunDirectoryError(f"{directory} holds other files; name a new or empty directory")


def write_evaluation(
    directory: Path, record: Mapping[str, Any], evaluation: Evaluation, evaluator: Evaluator
) -> list[Path]:
    """Write results.json, rows.jsonl, the evaluator's pictures, and report.html around them; returns their paths."""
    from lmflow.report.evaluation import render_evaluation

    directory.mkdir(parents=True, exist_ok=True)
    rows, results = directory / ROWS, directory / RESULTS
    rows.write_text("".join(f"{to_json(row)}\n" for row in evaluation.rows), encoding="utf-8")
    pictures = evaluator.draw(evaluation, directory)
    results.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
    report = directory / REPORT
    write_atomically(report, render_evaluation(record, pictures))
    return [results, rows, report, *pictures]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: numbers that are not finite are null."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
