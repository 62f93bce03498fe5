"""The core's own components, offered through the same door as everyone's."""

from __future__ import annotations

from lmflow.builtin.adamw import AdamW
from lmflow.builtin.attention import Eager, Sdpa
from lmflow.builtin.full import Full
from lmflow.builtin.merge import Merge
from lmflow.builtin.rewards import Classifier, PythonFunction
from lmflow.builtin.schedules import Constant, Cosine, Linear
from lmflow.builtin.sft import Sft
from lmflow.components import (
    Aligner,
    Attention,
    DataFormat,
    Evaluator,
    Exporter,
    Inferencer,
    Model,
    Optimizer,
    Reward,
    Schedule,
    Tuner,
)
from lmflow.data.formats import FORMATS
from lmflow.evaluators.accuracy import Accuracy, ExactMatch
from lmflow.evaluators.choices import Choices
from lmflow.evaluators.perplexity import Nll, Perplexity
from lmflow.hookspecs import hookimpl
from lmflow.inference.hf import HuggingFace
from lmflow.models.pretrained import Pretrained


@hookimpl
def lmflow_models() -> list[type[Model]]:
    """Model pretrained."""
    return [Pretrained]


@hookimpl
def lmflow_data_formats() -> list[type[DataFormat]]:
    """The core's record formats."""
    return list(FORMATS)


@hookimpl
def lmflow_tuners() -> list[type[Tuner]]:
    """Tuner full."""
    return [Full]


@hookimpl
def lmflow_aligners() -> list[type[Aligner]]:
    """Aligner sft."""
    return [Sft]


@hookimpl
def lmflow_inferencers() -> list[type[Inferencer]]:
    """Inferencer hf."""
    return [HuggingFace]


@hookimpl
def lmflow_rewards() -> list[type[Reward]]:
    """Rewards python and classifier."""
    return [PythonFunction, Classifier]


@hookimpl
def lmflow_evaluators() -> list[type[Evaluator]]:
    """Evaluators perplexity, nll, accuracy and exact_match."""
    return [Perplexity, Nll, Accuracy, ExactMatch, Choices]


@hookimpl
def lmflow_attentions() -> list[type[Attention]]:
    """Attention sdpa and eager."""
    return [Sdpa, Eager]


@hookimpl
def lmflow_optimizers() -> list[type[Optimizer]]:
    """Optimizer adamw."""
    return [AdamW]


@hookimpl
def lmflow_schedules() -> list[type[Schedule]]:
    """Schedules cosine, linear and constant."""
    return [Cosine, Linear, Constant]


@hookimpl
def lmflow_exporters() -> list[type[Exporter]]:
    """Exporter merge."""
    return [Merge]
