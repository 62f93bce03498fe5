"""The loss on held-out items, as the objective sees it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmflow.components import Log
from lmflow.data.collate import Batch
from lmflow.data.sample import Item
from lmflow.errors import TrainingError
from lmflow.training.batches import bounded_batches, sequences_of

if TYPE_CHECKING:
    from lmflow.training.objective import Objective


@torch.no_grad()
def validate(
    module: nn.Module,
    items: Sequence[Item],
    objective: Objective,
    log: Log,
    *,
    pad_id: int,
    device: torch.device,
    size: int | None,
    autocast: AbstractContextManager[Any],
    together: bool = False,
) -> dict[str, float]:
    """The mean loss over `items`, as "loss", and the objective's metrics, dropout off.

    Every pass is bounded by tokens, and the items are divided among the processes of the run; with `together` all of
    them make every pass, as they must where each holds a part of the model.
    """
    module.eval()
    processes = log.processes
    batches = bounded_batches(items, pad_id, size)
    mine = batches if together else batches[processes.rank :: processes.size]
    sums: dict[str, float] = {"loss": 0.0}
    with log.phase("evaluating", len(items)), autocast:
        for chosen, batch in mine:
            found = objective(module, module, batch.to(device))
            sums["loss"] += float(found.total)
            for name, value in found.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            log.advance(len(chosen))
            log.check_stop()
    count = sum(units(batch, chosen, objective) for chosen, batch in batches)
    names = sorted({name for each in processes.gather(sorted(sums)) for name in each})
    shared = {name: sums.get(name, 0.0) if together else processes.sum(sums.get(name, 0.0)) for name in names}
    means = {name: value / count for name, value in shared.items()}
    if not math.isfinite(means["loss"]):
        raise TrainingError(
            f"The loss on held-out samples is not finite ({means['loss']}), such as of {sources_of(items)}: the "
            "weights are damaged, or numbers became too large. Lower --training.learning_rate, or use "
            "--training.precision fp32."
        )
    return means


def sources_of(items: Sequence[Item]) -> str:
    """Where the first few items came from."""
    named = [each.source for item in items[:3] for each in sequences_of(item)[:1] if each.source]
    return ", ".join(named) or "the text that every run is judged on"


def units(batch: Batch, items: Sequence[int], objective: Objective) -> int:
    """What the sums of a batch are divided by."""
    return len(items) if objective.per == "item" else batch.num_targets
