"""Everything a plugin can add to lmflow: the one file a plugin author must read.

A plugin is an installed distribution with an entry point in the group `lmflow` that names a module (or object).
Functions in it marked `@hookimpl` are found by name. There are two sorts of hook: *offers*, plural nouns, return
component classes (or commands); *events*, past tense, return nothing and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from lmflow.components import (
        Aligner,
        Attention,
        Command,
        Context,
        DataFormat,
        Evaluator,
        Exporter,
        Inferencer,
        Model,
        Optimizer,
        Reward,
        Schedule,
        Tracker,
        Tuner,
    )
    from lmflow.recipe.recipe import Recipe

PROJECT = "lmflow"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lmflow_models() -> Iterable[type[Model]]:
    """Places a model can come from, chosen with --model (demo, pretrained)."""
    return ()


@hookspec
def lmflow_contexts() -> Iterable[type[Context]]:
    """Ways to make a model read longer texts, chosen with --context; none is chosen by default."""
    return ()


@hookspec
def lmflow_attentions() -> Iterable[type[Attention]]:
    """Ways to compute attention, chosen with --attention (sdpa, eager); the model's own by default."""
    return ()


@hookspec
def lmflow_data_formats() -> Iterable[type[DataFormat]]:
    """Meanings a record can have, chosen with --data or recognised from the records (alpaca, messages)."""
    return ()


@hookspec
def lmflow_tuners() -> Iterable[type[Tuner]]:
    """Ways to make a model trainable, chosen with --tuner (full, lora)."""
    return ()


@hookspec
def lmflow_optimizers() -> Iterable[type[Optimizer]]:
    """Ways to move parameters along their gradients, chosen with --optimizer (adamw)."""
    return ()


@hookspec
def lmflow_schedules() -> Iterable[type[Schedule]]:
    """Learning-rate schedules, chosen with --schedule (cosine, linear, constant)."""
    return ()


@hookspec
def lmflow_aligners() -> Iterable[type[Aligner]]:
    """Objectives and the loops around them, chosen with --aligner (sft, raft)."""
    return ()


@hookspec
def lmflow_inferencers() -> Iterable[type[Inferencer]]:
    """Ways to sample tokens, chosen with --inferencer (hf)."""
    return ()


@hookspec
def lmflow_rewards() -> Iterable[type[Reward]]:
    """Ways to score completions, chosen with --reward (python:module:function, classifier)."""
    return ()


@hookspec
def lmflow_evaluators() -> Iterable[type[Evaluator]]:
    """Ways to measure a model, chosen with `lmflow eval --evaluator` (perplexity, accuracy)."""
    return ()


@hookspec
def lmflow_trackers() -> Iterable[type[Tracker]]:
    """Records of runs kept elsewhere, chosen with --trackers (tensorboard, mlflow); they listen to the events below."""
    return ()


@hookspec
def lmflow_exporters() -> Iterable[type[Exporter]]:
    """What can be written for other tools, chosen with `lmflow export NAME` (merge)."""
    return ()


@hookspec
def lmflow_commands() -> Iterable[Command]:
    """Commands beside the core's, called as `lmflow NAME`; found when called, so `lmflow --help` does not list them."""
    return ()


@hookspec
def lmflow_run_started(recipe: Recipe, directory: Path) -> None:
    """A run has opened its directory; nothing is loaded yet."""


@hookspec
def lmflow_step_finished(step: int, metrics: Mapping[str, Any]) -> None:
    """A line was written to metrics.jsonl: an optimizer step, or an aligner's iteration."""


@hookspec
def lmflow_checkpoint_saved(path: Path) -> None:
    """A complete checkpoint now stands at `path`."""


@hookspec
def lmflow_run_finished(directory: Path, status: str, metrics: Mapping[str, Any]) -> None:
    """A run ended as `status` (completed, interrupted, failed); `metrics` is what run.json holds."""
