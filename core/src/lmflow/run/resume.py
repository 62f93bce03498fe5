"""Going on with a run: only with the recipe it began with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmflow.errors import RunDirectoryError
from lmflow.recipe.recipe import Recipe, dump
from lmflow.recipe.settings import LAUNCH, SOURCES, STAGES
from lmflow.run.directory import RunDirectory, check_usable
from lmflow.run_files import RECIPE, resume_command


def recipe_to_resume(output: Path) -> Path:
    """The recipe of the run at `output`. Raises RunDirectoryError where there is no run that could go on."""
    check_usable(output, resume=True, overwrite=False)
    return output / RECIPE


def check_same_recipe(directory: RunDirectory, recipe: Recipe, resume: bool) -> None:
    """A resumed run continues the recipe it began with; raises RunDirectoryError showing the first differences."""
    if not (resume and directory.recipe.exists()):
        return
    old, new = without_launch(directory.recipe.read_text(encoding="utf-8")), without_launch(dump(recipe))
    stages = ", ".join(stages_of(directory.path))
    if old != new:
        shown = f"  stages {stages} in the run, no stages now" if stages else differences(old, new)
        raise RunDirectoryError(
            f"{directory.path} was started with another recipe:\n{shown}\n"
            "Resume with --resume --output alone, or start a new run from its result with --model."
        )


def stages_of(path: Path) -> list[str]:
    """The names of the stages that the recipe of the run at `path` has; empty for one without."""
    import yaml

    sections = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
    return list((sections or {}).get(STAGES) or ())


def differences(old: Sequence[str], new: Sequence[str]) -> str:
    """The first lines in which a recipe differs from what it was when its run began."""
    found = [f"  {a.strip()!r} in the run, {b.strip()!r} now" for a, b in zip(old, new, strict=False) if a != b]
    return "\n".join(found[:5]) or "  (sections differ)"


def without_launch(recipe: str) -> list[str]:
    """The lines of a recipe but for what may change: in how many processes it is carried out, versions of plugins."""
    import yaml

    sections: dict[str, Any] = yaml.safe_load(recipe) or {}
    sections.pop(LAUNCH, None)
    sections[SOURCES] = {key: str(source).partition(" ")[0] for key, source in (sections.get(SOURCES) or {}).items()}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True).splitlines()


def how_to_resume(directory: Path) -> str:
    """What an interrupted user is told."""
    return f"Stopped; what was finished is in {directory}. Continue with: {resume_command(directory)}"
