"""Sampling in a run of several processes: each for a part of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lmflow.components import GenerateRequest
from lmflow.distributed.processes import Processes
from lmflow.inference.types import Completion

if TYPE_CHECKING:
    from lmflow.components import Inferencer, Log


def generate_sharded(inferencer: Inferencer, request: GenerateRequest, log: Log, phase: str) -> list[list[Completion]]:
    """The completions of all prompts in every process, each of which samples those of its part; shown as `phase`.

    They are those that one process samples, because a prompt's completions depend on the prompt and the seed alone.
    Where each process holds a part of the model only, or the inferencer divides prompts itself, all ask for everything.
    """
    alone = inferencer.shards_prompts or holds_part(request.model.module)
    processes = Processes() if alone else log.processes
    samplings = request.samplings
    most = sum(each.n * each.max_new_tokens for each in processes.shard(samplings))

    def generate(indices: Sequence[int]) -> list[list[Completion]]:
        return inferencer.generate(replace(request.part(indices), progress=log.advance_or_stop))

    with log.phase(phase, most):
        return processes.map_sharded(generate, range(len(request.prompts)))


def holds_part(module: nn.Module) -> bool:
    """Whether parameters are split over processes: FSDP's lie on a mesh of devices, those of ZeRO-3 have numbers."""
    return any(hasattr(each, "device_mesh") or hasattr(each, "ds_id") for each in module.parameters())
