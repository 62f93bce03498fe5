"""Drawing completions in a run of several processes: each for a share of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from lmflow.data.sample import Prompt
from lmflow.distributed.processes import Processes
from lmflow.inference.types import Completion, Sampling

if TYPE_CHECKING:
    from lmflow.components import Inferencer
    from lmflow.models.language_model import LanguageModel
    from lmflow.run.log import RunLog


def generate_sharded(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    inferencer: Inferencer,
    sampling: Sampling,
    log: RunLog,
    phase: str,
) -> list[list[Completion]]:
    """The completions of all prompts in every process, each of which draws those of its share; shown as `phase`.

    They are those that one process draws, because a prompt's completions depend on the prompt and the seed alone. Where
    each process holds a part of the model only, all draw everything: they can pass the model only together.
    """
    processes = Processes() if holds_part(model.module) else log.processes
    most = len(processes.shard(prompts)) * sampling.n * sampling.max_new_tokens

    def generate(some: Sequence[Prompt]) -> list[list[Completion]]:
        return inferencer.generate(model, some, sampling, log.advance_or_stop)

    with log.phase(phase, most):
        return processes.map_sharded(generate, prompts)


def holds_part(module: nn.Module) -> bool:
    """Whether parameters are split over processes: FSDP's lie on a mesh of devices, those of ZeRO-3 have numbers."""
    return any(hasattr(each, "device_mesh") or hasattr(each, "ds_id") for each in module.parameters())
