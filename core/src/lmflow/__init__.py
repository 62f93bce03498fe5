"""Fine-tune, align, extend and run large language models, on a core that plugins extend.

    import lmflow

    result = lmflow.run({"tuner": "lora", "aligner": "raft"})
    with lmflow.load_model(result) as model:
        print(model.generate("What is 2 + 2?").text)

These are the names of the public API. Each is imported when it is first asked for (PEP 562), so that `import lmflow`
itself loads neither torch nor anything else that takes time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lmflow.versions import INTERFACE_VERSION as INTERFACE_VERSION
from lmflow.versions import __version__ as __version__

if TYPE_CHECKING:
    from lmflow.api.evaluate import evaluate as evaluate
    from lmflow.api.model import LoadedModel as LoadedModel
    from lmflow.api.model import load_model as load_model
    from lmflow.api.run import run as run
    from lmflow.components import AlignContext as AlignContext
    from lmflow.components import Aligner as Aligner
    from lmflow.components import Attention as Attention
    from lmflow.components import Command as Command
    from lmflow.components import Component as Component
    from lmflow.components import Conflict as Conflict
    from lmflow.components import Context as Context
    from lmflow.components import DataFormat as DataFormat
    from lmflow.components import Engine as Engine
    from lmflow.components import EvaluateContext as EvaluateContext
    from lmflow.components import Evaluation as Evaluation
    from lmflow.components import Evaluator as Evaluator
    from lmflow.components import ExportContext as ExportContext
    from lmflow.components import Exporter as Exporter
    from lmflow.components import GenerateRequest as GenerateRequest
    from lmflow.components import Head as Head
    from lmflow.components import Inferencer as Inferencer
    from lmflow.components import LoadRequest as LoadRequest
    from lmflow.components import Log as Log
    from lmflow.components import Model as Model
    from lmflow.components import Need as Need
    from lmflow.components import Optimizer as Optimizer
    from lmflow.components import OptionalPathOrName as OptionalPathOrName
    from lmflow.components import ParameterGroup as ParameterGroup
    from lmflow.components import PathOrName as PathOrName
    from lmflow.components import PlanContext as PlanContext
    from lmflow.components import Quantization as Quantization
    from lmflow.components import Requirement as Requirement
    from lmflow.components import Reward as Reward
    from lmflow.components import RunContext as RunContext
    from lmflow.components import Schedule as Schedule
    from lmflow.components import Tracker as Tracker
    from lmflow.components import Tuner as Tuner
    from lmflow.components import Update as Update
    from lmflow.components import Workload as Workload
    from lmflow.errors import DataError as DataError
    from lmflow.errors import EstimateError as EstimateError
    from lmflow.errors import FailedElsewhere as FailedElsewhere
    from lmflow.errors import Interrupted as Interrupted
    from lmflow.errors import LmflowError as LmflowError
    from lmflow.errors import LostContact as LostContact
    from lmflow.errors import PluginError as PluginError
    from lmflow.errors import RecipeError as RecipeError
    from lmflow.errors import RewardError as RewardError
    from lmflow.errors import RunDirectoryError as RunDirectoryError
    from lmflow.errors import TrainingError as TrainingError
    from lmflow.hookspecs import hookimpl as hookimpl
    from lmflow.inference.types import Completion as Completion
    from lmflow.inference.types import Sampling as Sampling
    from lmflow.plugins import Plugins as Plugins
    from lmflow.plugins import load_plugins as load_plugins
    from lmflow.run.record import RunResult as RunResult

NAMES = {
    "lmflow.api.evaluate": ("evaluate",),
    "lmflow.api.model": ("LoadedModel", "load_model"),
    "lmflow.api.run": ("run",),
    "lmflow.components": (
        *("AlignContext", "Aligner", "Attention", "Command", "Component", "Conflict", "Context", "DataFormat"),
        *("Engine", "EvaluateContext", "Evaluation", "Evaluator", "ExportContext", "Exporter", "GenerateRequest"),
        *("Head", "Inferencer", "LoadRequest", "Log", "Model", "Need", "OptionalPathOrName", "Optimizer"),
        *("ParameterGroup", "PathOrName", "PlanContext"),
        *("Quantization", "Requirement", "Reward", "RunContext", "Schedule", "Tracker", "Tuner", "Update", "Workload"),
    ),
    "lmflow.errors": (
        *("DataError", "EstimateError", "FailedElsewhere", "Interrupted", "LmflowError", "LostContact"),
        *("PluginError", "RecipeError", "RewardError", "RunDirectoryError", "TrainingError"),
    ),
    "lmflow.hookspecs": ("hookimpl",),
    "lmflow.inference.types": ("Completion", "Sampling"),
    "lmflow.plugins": ("Plugins", "load_plugins"),
    "lmflow.run.record": ("RunResult",),
}
"""Where each name is defined. A test holds them to what type checkers are told above."""

_HOMES = {name: module for module, names in NAMES.items() for name in names}

# A package becomes an attribute of its parent when it is first imported, and once only: `lmflow.run` is loaded here, so
# that no later import of a module in it puts the package in the place of the function of that name.
importlib.import_module("lmflow.run")
del globals()["run"]


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names of the API, for completion."""
    return sorted([*_HOMES, "INTERFACE_VERSION", "__version__", "__doc__", "__file__", "__name__"])
