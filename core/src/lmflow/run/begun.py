"""Stages that have begun: each goes on as it began, while those still to come may be changed."""

from __future__ import annotations

from pathlib import Path

from lmflow.atomic import write_atomically
from lmflow.errors import RunDirectoryError
from lmflow.recipe.references import references_in
from lmflow.recipe.stages import Stage, StagedRecipe, stage_text
from lmflow.run.pipeline_record import is_finished, place_of
from lmflow.run.resume import comparable, differences, may_change, stages_of
from lmflow.run_files import CHECKPOINTS, RECIPE, SAMPLES, STAGES


def remember(whole: Path, stage: Stage) -> None:
    """Keep what a stage begins with beside its directory, which a later `check_begun` compares."""
    write_atomically(_file(whole, stage.name), stage_text(stage))


def check_begun(whole: Path, staged: StagedRecipe) -> None:
    """Raise RunDirectoryError unless the stages that have begun in `whole` can go on, or stay, as parts of `staged`.

    They must be as they were when they began, and what they began with must still be there. A stage that has left
    nothing to go on from, or whose directory is deleted, begins anew and may differ.
    """
    if (whole / RECIPE).exists() and not stages_of(whole):
        raise RunDirectoryError(f"{whole} holds a run without stages; begin this recipe with another --output.")
    begun = [file.stem for file in sorted((whole / STAGES).glob("*.yaml")) if _has_work(place_of(whole, file.stem))]
    for name in set(begun).difference(stage.name for stage in staged.stages):
        lacking = f"{whole} holds the stage {name}, which the recipe lacks."
        raise RunDirectoryError(f"{lacking} Put it back, or delete {place_of(whole, name)}.")
    for stage in (stage for stage in staged.stages if stage.name in begun):
        _check_unchanged(whole, stage)
        _check_sources(whole, stage)


def _has_work(place: Path) -> bool:
    """Whether a stage is finished, or has anything to go on from."""
    kept = (place / folder for folder in (CHECKPOINTS, SAMPLES))
    return is_finished(place) or any(any(folder.iterdir()) for folder in kept if folder.is_dir())


def _check_unchanged(whole: Path, stage: Stage) -> None:
    free = may_change(stage.planned.recipe)
    old, new = (comparable(text, free) for text in (_file(whole, stage.name).read_text("utf-8"), stage_text(stage)))
    if old != new:
        raise RunDirectoryError(
            f"stage {stage.name} was begun with another recipe:\n{differences(old, new)}\nChange it back, or delete "
            f"{place_of(whole, stage.name)} to begin that stage anew; those still to begin may be changed."
        )


def _check_sources(whole: Path, stage: Stage) -> None:
    """Raise RunDirectoryError where a result that a stage began with is to be made anew."""
    for source in references_in(stage.settings).values():
        if not is_finished(place_of(whole, source)):
            raise RunDirectoryError(
                f"stage {stage.name} was begun with a result of {source} that is not there any more. "
                f"Delete {place_of(whole, stage.name)} as well, to begin that stage anew."
            )


def _file(whole: Path, name: str) -> Path:
    return whole / STAGES / f"{name}.yaml"
