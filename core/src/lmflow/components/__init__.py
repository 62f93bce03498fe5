"""What the component of each slot must do: one small abstract class per slot, and the object each call is given.

A component is one pydantic class. Its fields are its options (command line, YAML, JSON schema), its docstring's
first line is its help, and one or two methods do the work. Heavy imports belong inside those methods, so that
listing plugins and showing help never loads torch.
"""

from lmflow.components.aligner import Aligner, Head, Workload
from lmflow.components.base import Component, Conflict, Need, Requirement
from lmflow.components.command import Command
from lmflow.components.contexts import (
    AlignContext,
    EvaluateContext,
    GenerateRequest,
    LoadRequest,
    PlanContext,
    Quantization,
    RunContext,
)
from lmflow.components.data import DataFormat
from lmflow.components.engine import Engine, Update
from lmflow.components.evaluator import Evaluation, Evaluator
from lmflow.components.exporter import ExportContext, Exporter
from lmflow.components.inferencer import Inferencer
from lmflow.components.log import Log
from lmflow.components.model import Attention, Context, Model
from lmflow.components.paths import OptionalPathOrName, PathOrName
from lmflow.components.reward import Reward
from lmflow.components.tracker import Tracker
from lmflow.components.tuner import Optimizer, ParameterGroup, Schedule, Tuner

__all__ = [
    "AlignContext",
    "Aligner",
    "Attention",
    "Command",
    "Component",
    "Conflict",
    "Context",
    "DataFormat",
    "Engine",
    "EvaluateContext",
    "Evaluation",
    "Evaluator",
    "ExportContext",
    "Exporter",
    "GenerateRequest",
    "Head",
    "Inferencer",
    "LoadRequest",
    "Log",
    "Model",
    "Need",
    "Optimizer",
    "OptionalPathOrName",
    "ParameterGroup",
    "PathOrName",
    "PlanContext",
    "Quantization",
    "Requirement",
    "Reward",
    "RunContext",
    "Schedule",
    "Tracker",
    "Tuner",
    "Update",
    "Workload",
]
