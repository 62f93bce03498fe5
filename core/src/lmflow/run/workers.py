"""A run that this process does not carry out itself, but starts several others for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmflow.distributed.environment import this_worker
from lmflow.distributed.launcher import launch
from lmflow.distributed.outcome import Outcome
from lmflow.errors import Interrupted, LmflowError
from lmflow.recipe.recipe import Recipe, dump
from lmflow.run.run import default_output


def needs_workers(recipe: Recipe) -> bool:
    """Whether several processes are to carry the recipe out, and none has been started yet."""
    return recipe.launch.total > 1 and this_worker() is None


def run_in_workers(
    recipe: Recipe, output: Path | None, flags: Sequence[str], *, show_all: bool = False, show_result: bool = True
) -> tuple[Path, Outcome]:
    """Carry the recipe out in several processes, each `lmflow run` with `flags`; the directory, and how they ended."""
    directory = output or default_output(recipe)
    shown = {"show_all": show_all, "show_result": show_result}
    return directory, launch(recipe.launch, dump(recipe), directory, flags, **shown)


def check_outcome(outcome: Outcome) -> None:
    """Raise Interrupted or LmflowError where the processes did not complete the run, with what they said."""
    text = "\n".join(line.removeprefix("error: ") for line in outcome.lines)
    if outcome.code > 128:
        raise Interrupted(outcome.code - 128, text)
    if outcome.code:
        error = LmflowError(text or f"the processes of the run ended with exit code {outcome.code}")
        error.exit_code = outcome.code
        raise error
