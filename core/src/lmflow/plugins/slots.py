"""The slots, and the hooks that fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmflow import components
from lmflow.components import Component

EVENTS = ("lmflow_run_started", "lmflow_step_finished", "lmflow_checkpoint_saved", "lmflow_run_finished")
"""Hooks that tell; all others offer."""


@dataclass(frozen=True)
class Slot:
    """A kind of part: the hook that offers its components, and the class they derive from."""

    name: str
    hook: str
    base: type[Component]
    in_recipe: bool = True
    """Whether a recipe of a run has one part for it; evaluators belong to `lmflow eval`, of trackers there are many."""


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot("model", "lmflow_models", components.Model),
        Slot("context", "lmflow_contexts", components.Context),
        Slot("attention", "lmflow_attentions", components.Attention),
        Slot("data", "lmflow_data_formats", components.DataFormat),
        Slot("tuner", "lmflow_tuners", components.Tuner),
        Slot("optimizer", "lmflow_optimizers", components.Optimizer),
        Slot("schedule", "lmflow_schedules", components.Schedule),
        Slot("aligner", "lmflow_aligners", components.Aligner),
        Slot("inferencer", "lmflow_inferencers", components.Inferencer),
        Slot("reward", "lmflow_rewards", components.Reward),
        Slot("evaluator", "lmflow_evaluators", components.Evaluator, in_recipe=False),
        Slot("exporter", "lmflow_exporters", components.Exporter, in_recipe=False),
        Slot("tracker", "lmflow_trackers", components.Tracker, in_recipe=False),
    )
}
"""Every slot, in the order of a recipe. A new slot is one row here and one hook."""


RECIPE_SLOTS: Sequence[str] = tuple(slot.name for slot in SLOTS.values() if slot.in_recipe)
