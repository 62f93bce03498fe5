"""What this distribution adds: five contexts that scale rotary positions, and two evaluators of long texts."""

from __future__ import annotations

from lmflow.components import Context, Evaluator
from lmflow.hookspecs import hookimpl
from lmflow_longctx.contexts import Dynamic, Linear, Llama3, Ntk, Yarn
from lmflow_longctx.passkey import Passkey
from lmflow_longctx.perplexity import PerplexityByLength

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_contexts() -> list[type[Context]]:
    """Ways to scale rotary position embeddings."""
    return [Linear, Ntk, Dynamic, Yarn, Llama3]


@hookimpl
def lmflow_evaluators() -> list[type[Evaluator]]:
    """Ways to measure what a model makes of long texts."""
    return [Passkey, PerplexityByLength]
