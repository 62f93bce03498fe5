"""Slot `exporter`: the weights of a finished run for another tool."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmflow.components.base import Component

if TYPE_CHECKING:
    from lmflow.components.log import Log
    from lmflow.components.model import Model
    from lmflow.plugins import Plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportContext:
    """What `Exporter.export` works with."""

    plugins: Plugins
    log: Log
    source: str
    """What the user named: a run, an adapter or model directory, a hub name."""
    model: Model
    """The component that loads it; the exporter calls `load` with the dtype it needs."""
    output: Path
    """The directory to write, which does not exist yet or is empty."""


class Exporter(Component):
    """Slot `exporter`: what is written for another tool, chosen with `lmflow export NAME`."""

    @abstractmethod
    def export(self, context: ExportContext) -> Path:
        """Write below `context.output`; return what the other tool is to be given."""
