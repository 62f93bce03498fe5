"""A run that this process does not carry out itself, but starts several others for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmflow.distributed.environment import this_worker
from lmflow.distributed.launcher import launch
from lmflow.distributed.outcome import Outcome
from lmflow.recipe.recipe import Recipe, dump
from lmflow.run.run import default_output


def needs_workers(recipe: Recipe) -> bool:
    """Whether several processes are to carry the recipe out, and none has been started yet."""
    return recipe.launch.total > 1 and this_worker() is None


def run_in_workers(
    recipe: Recipe, output: Path | None, flags: Sequence[str], *, show_all: bool = False
) -> tuple[Path, Outcome]:
    """Carry the recipe out in several processes, each `lmflow run` with `flags`; the directory, and how they ended."""
    directory = output or default_output(recipe)
    return directory, launch(recipe.launch, dump(recipe), directory, flags, show_all=show_all)
