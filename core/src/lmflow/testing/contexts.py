"""What components are given in a run, made by hand for tests of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmflow.builtin.adamw import AdamW
from lmflow.builtin.schedules import Constant, Cosine, Linear
from lmflow.components import AlignContext, EvaluateContext, Inferencer, Reward
from lmflow.inference.hf import HuggingFace
from lmflow.plugins import Plugins
from lmflow.run.log import RunLog

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset, Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.setup import Setup
    from lmflow.training.trainer import Trainer

SCHEDULES = {each.name: each for each in (Cosine, Linear, Constant)}


def quiet_log() -> RunLog:
    """A log that writes nothing and tells nobody."""
    return RunLog(None, lambda *_, **__: None)


def evaluate_context(
    model: LanguageModel,
    samples: Sequence[Sample],
    inferencer: Inferencer | None = None,
    log: RunLog | None = None,
    plugins: Plugins | None = None,
) -> EvaluateContext:
    """What `Evaluator.evaluate` is given."""
    return EvaluateContext(
        plugins=plugins or Plugins(),
        log=log or quiet_log(),
        model=model,
        samples=samples,
        inferencer=inferencer or HuggingFace(),
    )


def align_context(
    trainer: Trainer,
    data: Dataset,
    inferencer: Inferencer | None = None,
    reward: Reward | None = None,
    models: Mapping[str, LanguageModel] | None = None,
) -> AlignContext:
    """What `Aligner.align` is given, around a trainer and its model."""
    return AlignContext(
        plugins=Plugins(),
        log=trainer.log,
        model=trainer.model,
        models=models or {},
        data=data,
        trainer=trainer,
        inferencer=inferencer or HuggingFace(),
        reward=reward,
    )


def trainer_setup(schedule: str = "cosine", warmup: float = 0.03, weight_decay: float = 0.0, **setup: Any) -> Setup:
    """How a trainer works: AdamW and a schedule of the core, and what else `Setup` takes."""
    from lmflow.training.setup import Setup

    return Setup(optimizer=AdamW(weight_decay=weight_decay), schedule=SCHEDULES[schedule](warmup=warmup), **setup)
