"""The core's own components, offered through the same door as everyone's."""

from __future__ import annotations

from lmflow.builtin.full import Full
from lmflow.builtin.rewards import Classifier, PythonFunction
from lmflow.builtin.sft import Sft
from lmflow.components import Aligner, DataFormat, Evaluator, Inferencer, Model, Reward, Tuner
from lmflow.data.formats import FORMATS
from lmflow.evaluators.accuracy import Accuracy, ExactMatch
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
    return [Perplexity, Nll, Accuracy, ExactMatch]
