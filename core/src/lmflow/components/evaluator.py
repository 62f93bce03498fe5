"""Slot `evaluator`: one way to measure a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.components.contexts import EvaluateContext


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator found: figures by name, and one row per sample (or length, or depth) they come from."""

    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]] = ()


class Evaluator(Component):
    """Slot `evaluator`: one way to measure a model, used by `lmflow eval`."""

    reads_data: ClassVar[bool] = True
    """Whether it measures on the user's records; if not, `samples` is empty and no data is asked for."""

    @abstractmethod
    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Measure `context.model` on `context.samples`. Raises LmflowError where the samples lack what is measured."""

    def plot(self, evaluation: Evaluation, directory: Path) -> list[Path]:
        """Write plots of what was found below `directory`; returns their paths. The default draws none."""
        return []
