"""Going on with a run: only with the recipe it began with."""

from __future__ import annotations

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
    """A resumed run continues the recipe it began with; raises RunDirectoryError showing the first difference."""
    check_same_text(directory, dump(recipe), resume)


def check_same_text(directory: RunDirectory, recipe: str, resume: bool) -> None:
    """The same of a recipe, or of several stages, as YAML."""
    if not (resume and directory.recipe.exists()):
        return
    old, new = without_launch(directory.recipe.read_text(encoding="utf-8")), without_launch(recipe)
    differences = [f"  {a.strip()!r} in the run, {b.strip()!r} now" for a, b in zip(old, new) if a != b]
    before, after = stages_in(old), stages_in(new)
    if before != after:  # lines of one would be held against those of quite another
        differences = [f"  {before or 'no stages'} in the run, {after or 'no stages'} now"]
    if old != new:
        shown = "\n".join(differences[:5]) or "  (sections differ)"
        raise RunDirectoryError(
            f"{directory.path} was started with another recipe:\n{shown}\n"
            "Resume with --resume --output alone, or start a new run from its result with --model."
        )


def without_launch(recipe: str) -> list[str]:
    """The lines of a recipe but for what may change: in how many processes it is carried out, versions of plugins.

    Those of stages come one after the other, each line with its stage.
    """
    import yaml

    sections: dict[str, Any] = yaml.safe_load(recipe) or {}
    if STAGES in sections:
        names = f"stages {', '.join(sections[STAGES])}"
        return [
            names,
            *(f"stage {name}: {line.strip()}" for name, each in sections[STAGES].items() for line in _lines(each)),
        ]
    return _lines(sections)


def stages_in(lines: list[str]) -> str:
    """Which stages the lines are those of, "" for a recipe without."""
    return lines[0] if lines and lines[0].startswith(f"{STAGES} ") else ""


def _lines(sections: dict[str, Any]) -> list[str]:
    import yaml

    sections.pop(LAUNCH, None)
    sections[SOURCES] = {key: str(source).partition(" ")[0] for key, source in (sections.get(SOURCES) or {}).items()}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True).splitlines()


def how_to_resume(directory: Path) -> str:
    """What an interrupted user is told."""
    return f"Stopped; what was finished is in {directory}. Continue with: {resume_command(directory)}"
