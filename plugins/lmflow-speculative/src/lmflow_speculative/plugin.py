"""What this distribution adds: inferencer `speculative`, command `draft`."""

from __future__ import annotations

from lmflow.components import Inferencer
from lmflow.hookspecs import hookimpl
from lmflow_speculative.speculative import Speculative

LMFLOW_INTERFACE = 1


@hookimpl
def lmflow_inferencers() -> list[type[Inferencer]]:
    """Inferencer speculative."""
    return [Speculative]
