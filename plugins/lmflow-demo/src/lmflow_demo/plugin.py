"""What this distribution adds: models `demo` and `smollm2`, data `demo`, reward `demo`."""

from __future__ import annotations

from lmflow.components import DataFormat, Model, Reward
from lmflow.hookspecs import hookimpl
from lmflow_demo.demo import Demo, DemoReward, DemoTasks
from lmflow_demo.smollm2 import SmolLM2

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_models() -> list[type[Model]]:
    """Models demo and smollm2."""
    return [Demo, SmolLM2]


@hookimpl
def lmflow_data_formats() -> list[type[DataFormat]]:
    """The embedded tasks."""
    return [DemoTasks]


@hookimpl
def lmflow_rewards() -> list[type[Reward]]:
    """Whether a task's answer is right."""
    return [DemoReward]
