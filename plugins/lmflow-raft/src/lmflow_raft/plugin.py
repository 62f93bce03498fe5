"""What this distribution adds: aligner `raft`."""

from __future__ import annotations

from lmflow.components import Aligner
from lmflow.hookspecs import hookimpl
from lmflow_raft.raft import Raft

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_aligners() -> list[type[Aligner]]:
    """Aligner raft."""
    return [Raft]
