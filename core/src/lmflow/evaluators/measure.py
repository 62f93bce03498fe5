"""Measuring a model with an evaluator."""

from __future__ import annotations

import time
from typing import Any

from lmflow.components import EvaluateContext, Evaluation, Evaluator
from lmflow.plugins.installed import versions


def measure(evaluator: Evaluator, context: EvaluateContext) -> tuple[Evaluation, dict[str, Any]]:
    """What the evaluator found, and a record of it: its options, the metrics, what the inferencer counted, versions."""
    started = time.perf_counter()
    evaluation = evaluator.evaluate(context)
    return evaluation, {
        "evaluator": {"name": evaluator.name, **evaluator.model_dump(mode="json")},
        "records": len(context.samples),
        "metrics": dict(evaluation.metrics),
        "inferencer_figures": dict(context.inferencer.figures()),
        "notes": list(context.log.notes),
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
    }
