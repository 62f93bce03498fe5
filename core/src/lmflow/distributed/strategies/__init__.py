"""How a run's weights, gradients and optimizer state lie in its processes."""

from __future__ import annotations

from torch import nn

from lmflow.distributed.processes import Processes
from lmflow.distributed.strategies.base import MakeOptimizer
from lmflow.distributed.strategies.ddp import DDP


def make_strategy(
    strategy: str, module: nn.Module, make_optimizer: MakeOptimizer, processes: Processes, limit: float | None
) -> DDP:
    """The arrangement called `strategy`; one process by itself has everything, whatever it is called."""
    if processes.size == 1 or strategy == "ddp":
        return DDP(module, make_optimizer, processes, limit)
    if strategy == "fsdp":
        from lmflow.distributed.strategies.fsdp import FSDP

        return FSDP(module, make_optimizer, processes, limit)
    from lmflow.distributed.strategies.zero import ZeRO

    return ZeRO(module, make_optimizer, processes, limit, stage=int(strategy.removeprefix("zero")))
