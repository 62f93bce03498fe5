"""Measuring a model with an evaluator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmflow.components import Evaluation, Evaluator, Inferencer
from lmflow.plugins.installed import versions

if TYPE_CHECKING:
    from lmflow.data.sample import Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.run.log import RunLog


def measure(
    model: LanguageModel, evaluator: Evaluator, samples: Sequence[Sample], inferencer: Inferencer, log: RunLog
) -> tuple[Evaluation, dict[str, Any]]:
    """What the evaluator found, and a record of it: its options, the metrics, what the inferencer counted, versions."""
    started = time.perf_counter()
    evaluation = evaluator.evaluate(model, samples, inferencer, log)
    return evaluation, {
        "evaluator": {"name": evaluator.name, **evaluator.model_dump(mode="json")},
        "records": len(samples),
        "metrics": dict(evaluation.metrics),
        "inferencer_figures": dict(inferencer.figures()),
        "notes": list(log.notes),
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
    }
