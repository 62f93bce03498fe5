"""Going on with a run: only with the recipe it began with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmflow.data.files import is_known
from lmflow.errors import RunDirectoryError
from lmflow.plugins import RECIPE_SLOTS
from lmflow.recipe.recipe import Recipe, dump
from lmflow.recipe.settings import LAUNCH, PLAIN, SOURCES, STAGES
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
    free = may_change(recipe)
    old, new = comparable(directory.recipe.read_text(encoding="utf-8"), free), comparable(dump(recipe), free)
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


SHOWN = 5
"""Differences that a message shows."""
NOWHERE = object()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first options in which a recipe differs from what it was when its run began."""
    paths = [path for path in {**old, **new} if old.get(path, NOWHERE) != new.get(path, NOWHERE)]
    found = [f"  {path}: {_as_said(old, path)} in the run, {_as_said(new, path)} now" for path in paths]
    return "\n".join([*found[:SHOWN], *([f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])])


def _as_said(values: Mapping[str, Any], path: str) -> str:
    value = values.get(path, NOWHERE)
    return "nothing" if value is NOWHERE else "none" if value is None else str(value)


def may_change(recipe: Recipe) -> set[str]:
    """The options, by dotted path, that change what a run takes and not what it ends with."""
    parts = {name: getattr(recipe, name) for name in (*RECIPE_SLOTS, *PLAIN)}
    return {f"{name}.{option}" for name, part in parts.items() for option in getattr(part, "may_change", ())}


def comparable(recipe: str, free: Collection[str] = ()) -> dict[str, Any]:
    """The values of a recipe by dotted path but for what may change: `free`, the launch, versions of plugins."""
    import yaml

    sections: dict[str, Any] = yaml.safe_load(recipe) or {}
    sections.pop(LAUNCH, None)
    sections[SOURCES] = {key: str(source).partition(" ")[0] for key, source in (sections.get(SOURCES) or {}).items()}
    return {path: value for path, value in _flat(sections) if path not in free}


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def how_to_resume(directory: Path) -> str:
    """What an interrupted user is told."""
    return f"Stopped; what was finished is in {directory}. Continue with: {resume_command(directory)}"
