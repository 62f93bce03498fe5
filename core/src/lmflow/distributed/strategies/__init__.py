"""How a run's weights, gradients and optimizer state lie in its processes."""

from __future__ import annotations

from torch import nn

from lmflow.distributed.processes import Group
from lmflow.distributed.strategies.base import MakeOptimizer
from lmflow.distributed.strategies.ddp import Replicated


def arrange(
    strategy: str, module: nn.Module, make_optimizer: MakeOptimizer, group: Group, limit: float | None
) -> Replicated:
    """The arrangement called `strategy`; one process by itself has everything, whatever it is called."""
    if group.size == 1 or strategy == "ddp":
        return Replicated(module, make_optimizer, group, limit)
    if strategy == "fsdp":
        from lmflow.distributed.strategies.fsdp import Sharded

        return Sharded(module, make_optimizer, group, limit)
    from lmflow.distributed.strategies.zero import Zero

    return Zero(module, make_optimizer, group, limit, stage=int(strategy.removeprefix("zero")))
