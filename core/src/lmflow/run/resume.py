"""Going on with a run: only with the recipe it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmflow.data.files import is_known
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


def check_same_data(place: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise RunDirectoryError where the run at `place` was started with other data, as run.json describes both."""
    for key, option, what in (("sha256", "path", "data"), ("validation_sha256", "validation", "held-out data")):
        old, new = (before or {}).get(key), now.get(key)
        if is_known(old) and is_known(new) and old != new:
            raise RunDirectoryError(
                f"{place} was started with other {what}: {_data(before or {}, old, option)} then, "
                f"{_data(now, new, option)} now. Put it back as it was to go on with --resume, or start a new run."
            )


def _data(summary: Mapping[str, Any], digest: Any, option: str) -> str:
    path = summary.get(option) or summary.get("path") or f"embedded in format {summary.get('format')}"
    count = f"{summary.get('records', 0):,} records, " if option == "path" else ""
    return f"{path} ({count}SHA-256 {str(digest)[:12]})"


def check_same_weights(place: Path, name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Raise RunDirectoryError where the run at `place` was started from other weights of the model called `name`."""
    old, new = (before or {}).get("fingerprint"), now.get("fingerprint")
    if before is not None and old is not None and new is not None and old != new:
        which = "weights" if name == "model" else f"weights of the {name} model"
        raise RunDirectoryError(
            f"{place} was started with other {which}: {before['path']} (fingerprint {old[:12]}) then, {now['path']} "
            f"(fingerprint {new[:12]}) now. Put them back as they were to go on with --resume, or start a new run."
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
