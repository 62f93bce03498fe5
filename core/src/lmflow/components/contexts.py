"""What components are given: one frozen object a call, so that a new fact breaks no plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from lmflow.components.inferencer import Inferencer
    from lmflow.components.log import Log
    from lmflow.components.model import Attention, Context
    from lmflow.components.reward import Reward
    from lmflow.data.sample import Dataset, Prompt, Sample
    from lmflow.distributed.processes import Processes
    from lmflow.inference.types import Sampling
    from lmflow.models.language_model import LanguageModel
    from lmflow.plugins import Plugins
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Quantization:
    """Weights of linear layers in fewer bits, as bitsandbytes stores them; embeddings and output head keep theirs.

    nf4 and fp4 have 4 bits and a scale for every 64 weights (Dettmers et al., 2023, arXiv 2305.14314), int8 has 8 bits
    and a scale for every row (Dettmers et al., 2022, arXiv 2208.07339).
    """

    kind: Literal["nf4", "fp4", "int8"]
    double_quantization: bool = True
    """Whether the scales of 4-bit weights are themselves stored in 8 bits; int8 has no such choice."""
    compute_dtype: str | None = None
    """What 4-bit weights are multiplied in: "float32" or "bfloat16"; None for the dtype of the request. int8 computes
    as bitsandbytes does, in 8 bits and float16."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """How a model is to be loaded."""

    dtype: str = "float32"
    """Of the weights: "float32" or "bfloat16"."""
    device: str = "cpu"
    """Where they go: "cpu" or "cuda"."""
    context: Context | None = None
    """Changes the configuration before the model is built with it."""
    attention: Attention | None = None
    """How attention is computed; None leaves it to the model."""
    quantization: Quantization | None = None
    """How the weights of linear layers are stored; None for `dtype`."""
    device_map: Literal["auto"] | None = None
    """auto spreads the layers over all devices, and main memory where those are full; None puts all on `device`."""
    plugins: Plugins | None = None
    """What is installed, for models that are made of other models; None where nothing but this model is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What every call at work on a model is given."""

    plugins: Plugins
    """What is installed; no component looks for plugins itself."""
    log: Log
    """Where metrics, progress and notes go."""
    model: LanguageModel
    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    """Those that the aligner names in `Aligner.models`, frozen and in eval mode."""

    @property
    def processes(self) -> Processes:
        """Those that carry out the run together; one by itself is a group too."""
        return self.log.processes

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's first weight."""
        return next(self.model.module.parameters()).dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignContext(RunContext):
    """What `Aligner.align` works with.

    `model` has the weights to go on from: on a resumed run those of the checkpoint, not those that training started
    with (`trainer.start_weights()`).
    """

    data: Dataset
    trainer: Trainer
    inferencer: Inferencer
    reward: Reward | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """What `Aligner.workload` looks at, before anything is trained."""

    model: LanguageModel
    """Its weights may have no values."""
    data: Dataset
    options: TrainingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateContext(RunContext):
    """What `Evaluator.evaluate` measures, and with what."""

    samples: Sequence[Sample]
    """The user's records; empty where the evaluator reads none."""
    inferencer: Inferencer


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What an inferencer is asked for."""

    model: LanguageModel
    prompts: Sequence[Prompt]
    sampling: Sampling | Sequence[Sampling]
    """How to sample: for all prompts alike, or one for each."""
    progress: Callable[[int], None] | None = None
    """Called after every forward pass with the number of tokens just sampled; it may raise to stop."""

    @property
    def samplings(self) -> list[Sampling]:
        """The sampling of each prompt."""
        if isinstance(self.sampling, Sequence):
            if len(self.sampling) != len(self.prompts):
                raise ValueError(f"{len(self.sampling)} samplings for {len(self.prompts)} prompts")
            return list(self.sampling)
        return [self.sampling] * len(self.prompts)

    def part(self, indices: Sequence[int]) -> GenerateRequest:
        """The same request for some of its prompts."""
        alike = not isinstance(self.sampling, Sequence)
        return replace(
            self,
            prompts=[self.prompts[i] for i in indices],
            sampling=self.sampling if alike else [self.samplings[i] for i in indices],
        )
