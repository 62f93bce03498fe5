"""`lmflow.run`: one run, from a recipe in Python or in a file to the directory that holds everything about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from lmflow.api.components import RewardFunction, plugins_for
from lmflow.api.quiet import quiet_libraries
from lmflow.components import Component
from lmflow.errors import RecipeError, RunDirectoryError
from lmflow.plugins import Plugins
from lmflow.plugins.in_process import IN_PROCESS
from lmflow.plugins.isolation import preserve_process_state
from lmflow.recipe.mapping import read_mapping
from lmflow.recipe.recipe import Recipe, ResolvedRecipe
from lmflow.recipe.settings import STAGES, Setting
from lmflow.recipe.stages import StagedRecipe, resolve_written
from lmflow.recipe.yaml import read_settings
from lmflow.run.record import RunResult
from lmflow.run.resume import recipe_to_resume
from lmflow.run_files import read_record


def run(
    recipe: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    /,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: bool = False,
    components: Iterable[type[Component] | RewardFunction] = (),
    **sections: Any,
) -> RunResult:
    """Carry out a recipe, as `lmflow run` does; returns where its directory is and what run.json holds.

    `recipe` is a mapping like the YAML, `{"tuner": {"name": "lora", "rank": 16}, "training.learning_rate": 1e-4}`, or
    the path of a recipe file; sections given by keyword come on top: `run(tuner="lora", data={"path": "x.jsonl"})`. In
    the place of a component's name may stand its class, an instance with options, or for `reward` a function of
    (prompts, completions, records). `components` are classes and reward functions that may be named in this call.
    `stages` are recipes by name, carried out one after the other: then `result` is that of the last, and
    `record["stages"]` says what each has come to.

    `output` is the run's directory, by default a new one in `runs/`. With `resume` the run in it goes on, by its own
    recipe if none is given, with sections over it; with `overwrite` it is replaced. Nothing is printed unless `display`
    asks for progress, which goes to standard error. Random numbers and torch's modes are afterwards as they were.

    Raises RecipeError with every mistake at once, RunDirectoryError for an output that cannot be used, Interrupted
    after Ctrl-C, and other LmflowErrors for what fails; what was finished stays, and `resume=True` goes on from it.
    """
    directory = None if output is None else Path(output)
    given = {**(recipe if isinstance(recipe, Mapping) else {})}
    file = None if recipe is None or isinstance(recipe, Mapping) else Path(recipe)
    if twice := given.keys() & sections.keys():
        raise RecipeError([f"{section}: given twice, in the recipe and by keyword" for section in sorted(twice)])
    if resume and directory is None:
        raise RunDirectoryError("resume needs output, the directory of the run to continue")
    if resume and directory is not None and recipe is None:
        file = recipe_to_resume(directory)
    named, plugins = plugins_for({**given, **sections}, components)
    on_top = {section: value for section, value in named.items() if section in sections}
    beside = {section: value for section, value in named.items() if section not in sections}
    resolved = resolve_named(plugins, file, beside, on_top)
    from lmflow.run.pipeline import run_stages
    from lmflow.run.run import run as carry_out
    from lmflow.run.terminal import make_run_display
    from lmflow.run.workers import needs_workers

    make_display = partial(make_run_display, silent=not display)
    where: dict[str, Any] = {"output": directory, "resume": resume, "overwrite": overwrite}
    if isinstance(resolved, StagedRecipe):
        check_importable(plugins, [stage.resolved.recipe for stage in resolved.stages])
        with quiet_libraries(), preserve_process_state():
            return run_stages(resolved, plugins, **where, make_display=make_display, flags=["--quiet"])
    if needs_workers(resolved.recipe):
        return run_elsewhere(resolved.recipe, plugins, **where)
    with closing(make_display()) as shown, quiet_libraries(), preserve_process_state():
        return carry_out(resolved, plugins, **where, display=shown)


def resolve_named(
    plugins: Plugins, file: Path | None, sections: Mapping[str, Any], on_top: Mapping[str, Any]
) -> ResolvedRecipe | StagedRecipe:
    """The recipe of a file or sections, and sections on top of it; raises RecipeError with everything wrong in it.

    What stands beside `stages` is below what they say, as in a file, and not on top.
    """
    problems: list[str] = []
    written = [] if file is None else list(read_settings(file, problems))
    below, above = (list(read_mapping(each, problems)) for each in (sections, on_top))
    if file is None and has_stages(below):
        return resolve_written(plugins, below, above, problems)
    if file is None and has_stages(above):
        replaced = {setting.path for setting in above}
        return resolve_written(plugins, [*(each for each in below if each.path not in replaced), *above], [], problems)
    return resolve_written(plugins, written, [*below, *above], problems)


def has_stages(settings: Iterable[Setting]) -> bool:
    """Whether settings are those of stages."""
    return any(setting.path.startswith(f"{STAGES}.") for setting in settings)


def run_elsewhere(recipe: Recipe, plugins: Plugins, output: Path | None, *, resume: bool, overwrite: bool) -> RunResult:
    """The run in processes of its own, which import what they are told to: all of it must be installed."""
    from lmflow.run.workers import check_outcome, run_in_workers

    check_importable(plugins, [recipe])
    flags = ["--quiet", *(["--resume"] if resume else []), *(["--overwrite"] if overwrite else [])]
    directory, outcome = run_in_workers(recipe, output, flags)
    check_outcome(outcome)
    return RunResult(directory, read_record(directory))


def check_importable(plugins: Plugins, recipes: Iterable[Recipe]) -> None:
    """Raise RecipeError where other processes are to carry out a recipe, and could not import what was given here."""
    from lmflow.run.workers import needs_workers

    here_alone = [each.entry_point for each in plugins.loaded if each.distribution == IN_PROCESS]
    if here_alone and any(needs_workers(recipe) for recipe in recipes):
        raise RecipeError(
            "launch.processes: components and functions given as Python objects exist in this process alone; run in "
            "one, or put them into a plugin (lmflow new)"
        )
