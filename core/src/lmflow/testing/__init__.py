"""What plugin authors test with: a class per kind of component to inherit from, and small models made from code.

    from lmflow.testing import TunerSuite

Needs pytest, which the extra `lmflow-core[testing]` brings.
"""

import pytest

# Before they are imported: a failing assertion then shows the values it compared.
pytest.register_assert_rewrite(*(f"{__name__}.{kind}" for kind in ("aligner", "attention", "command", "context")))
pytest.register_assert_rewrite(*(f"{__name__}.{kind}" for kind in ("data_format", "evaluator", "exporter")))
pytest.register_assert_rewrite(
    *(f"{__name__}.{kind}" for kind in ("inferencer", "listener", "model", "optimizer", "reward"))
)
pytest.register_assert_rewrite(*(f"{__name__}.{kind}" for kind in ("runs", "schedule", "tracker", "tuner")))
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("inferencer_requests", "inferencer_sampling")))
pytest.register_assert_rewrite(f"{__name__}.requests")

from lmflow.testing.aligner import AlignerSuite  # noqa: E402
from lmflow.testing.attention import AttentionSuite  # noqa: E402
from lmflow.testing.command import CommandSuite  # noqa: E402
from lmflow.testing.context import ContextSuite  # noqa: E402
from lmflow.testing.data_format import DataFormatSuite  # noqa: E402
from lmflow.testing.evaluator import EvaluatorSuite  # noqa: E402
from lmflow.testing.exporter import ExporterSuite  # noqa: E402
from lmflow.testing.inferencer import InferencerSuite  # noqa: E402
from lmflow.testing.listener import ListenerSuite  # noqa: E402
from lmflow.testing.model import ModelSuite  # noqa: E402
from lmflow.testing.optimizer import OptimizerSuite  # noqa: E402
from lmflow.testing.reward import RewardSuite  # noqa: E402
from lmflow.testing.schedule import ScheduleSuite  # noqa: E402
from lmflow.testing.tracker import TrackerSuite  # noqa: E402
from lmflow.testing.tuner import TunerSuite  # noqa: E402

__all__ = [
    "AlignerSuite",
    "AttentionSuite",
    "CommandSuite",
    "ContextSuite",
    "DataFormatSuite",
    "EvaluatorSuite",
    "ExporterSuite",
    "InferencerSuite",
    "ListenerSuite",
    "ModelSuite",
    "OptimizerSuite",
    "RewardSuite",
    "ScheduleSuite",
    "TrackerSuite",
    "TunerSuite",
]
