"""Recipes of several stages: each is a recipe of its own, and may name what an earlier one ends with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmflow.components import Model
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins
from lmflow.recipe.gather import merge, over
from lmflow.recipe.other_models import other_models
from lmflow.recipe.preferences import nearest
from lmflow.recipe.recipe import ResolvedRecipe, as_dict
from lmflow.recipe.references import (
    MODEL,
    Settings,
    faulty_references,
    reference_in,
    start_of,
    with_results,
    with_stand_ins,
    with_start,
)
from lmflow.recipe.resolve import resolve_settings
from lmflow.recipe.settings import RUN_SCOPE, SOURCES, STAGES, Origin, Setting
from lmflow.recipe.yaml import read_settings, write


@dataclass(frozen=True)
class Stage:
    """One stage: its settings as they were written, and what they come to as far as it is known before it begins."""

    name: str
    settings: Settings
    resolved: ResolvedRecipe
    """With references as they stand, but for `model: stage:NAME`: there stands the model NAME starts from."""
    planned: ResolvedRecipe
    """With such models in the place of all references."""

    def as_dict(self) -> dict[str, Any]:
        """The stage's sections as plain values, every one of them explicit, and references as they stand."""
        sections = as_dict(self.resolved.recipe)
        if start_of(self.settings) is not None:
            options = {key: value for key, value in sections["model"].items() if key in Model.model_fields}
            sections["model"] = {"name": self.settings[MODEL].value, **options}
        return sections

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where each value came from, by dotted path."""
        named = {MODEL: self.settings[MODEL].origin} if MODEL in self.settings else {}
        return {**self.resolved.origins, **named}

    def started(self, plugins: Plugins, result_of: Callable[[str], str]) -> ResolvedRecipe:
        """The recipe to carry out: `result_of` says where an earlier stage left its result."""
        return resolve_settings(plugins, with_results(self.settings, result_of), [])


@dataclass(frozen=True)
class StagedRecipe:
    """Several recipes, to be carried out in order."""

    stages: Sequence[Stage]


def dump_stages(staged: StagedRecipe) -> str:
    """The stages as YAML. Resolving that text gives the same stages, and dumping those the same text."""
    return write({STAGES: {stage.name: _with_sources(stage) for stage in staged.stages}})


def stage_text(stage: Stage) -> str:
    """One stage as YAML, as `dump_stages` has it below its name."""
    return write(_with_sources(stage))


def _with_sources(stage: Stage) -> dict[str, Any]:
    sources = dict(stage.resolved.recipe.sources)
    return stage.as_dict() | ({SOURCES: sources} if sources else {})


def resolve_recipe(
    plugins: Plugins, file: Path | None = None, options: Sequence[Setting] = ()
) -> ResolvedRecipe | StagedRecipe:
    """The recipe of a file and options, or its stages; raises RecipeError with everything wrong in them."""
    problems: list[str] = []
    written = [] if file is None else list(read_settings(file, problems))
    return resolve_written(plugins, written, options, problems)


def resolve_written(
    plugins: Plugins, written: Sequence[Setting], options: Sequence[Setting], problems: list[str]
) -> ResolvedRecipe | StagedRecipe:
    """The recipe of what was written and options over it, or its stages; raises RecipeError, `problems` first.

    Sections beside `stages` are defaults of every stage. An option is for every stage, one below `stages.NAME` for that
    alone; what a stage takes from an earlier one stays.
    """
    defaults, own = split(written)
    if not own:
        return resolve_settings(plugins, merge(written, options, RUN_SCOPE, problems), problems)
    paths = [setting.path for setting in written]
    problems += dict.fromkeys(f"{path}: given twice" for path in paths if paths.count(path) > 1)
    problems += (
        f"{setting.place}: expected an option of that stage, as in {setting.place}.tuner lora"
        for setting in options
        if setting.path.startswith(f"{STAGES}.") and setting.path.count(".") == 1
    )
    common, special = split(options)
    for name in (name for name in special if name not in own):
        places = ", ".join(setting.place for setting in special[name]) or STAGES
        problems.append(f"{places}: there is no stage {name!r}{nearest(name, own)}")
    made: dict[str, Settings] = {}
    wrong: dict[str, list[str]] = {}
    for name, sections in own.items():
        base, wrong[name] = over(defaults, sections), []
        made[name] = merge(base.values(), options_for(base, common, special.get(name, ())), RUN_SCOPE, wrong[name])
        wrong[name] += faulty_references(name, made[name], list(own))
    stages = resolve_stages(plugins, made, wrong)
    if problems or any(wrong.values()):
        raise RecipeError([*problems, *told_once(wrong, common)])
    return StagedRecipe(stages)


def resolve_stages(plugins: Plugins, made: Mapping[str, Settings], wrong: dict[str, list[str]]) -> list[Stage]:
    """The stages of their settings; what is wrong with one is added to what is `wrong` with it, and leaves it out."""
    earlier: dict[str, Settings] = {}
    found: dict[str, Stage] = {}
    for name, settings in made.items():
        written = with_start(settings, earlier)
        recipes = {each.name: each.planned.recipe for each in found.values()}
        earlier[name] = with_stand_ins(written, earlier, recipes)
        try:
            resolved = resolve_settings(plugins, written, wrong[name])
            planned = resolve_settings(plugins, earlier[name], []) if earlier[name] != written else resolved
            other_models(planned.recipe.aligner, plugins)
        except RecipeError as error:
            wrong[name] = error.problems
        else:
            found[name] = Stage(name, settings, resolved, planned)
    return list(found.values())


def split(settings: Iterable[Setting]) -> tuple[list[Setting], dict[str, list[Setting]]]:
    """Settings of all stages, and those of each by its name, their paths without it."""
    shared: list[Setting] = []
    stages: dict[str, list[Setting]] = {}
    for setting in settings:
        section, _, rest = setting.path.partition(".")
        if section != STAGES:
            shared.append(setting)
            continue
        name, _, path = rest.partition(".")
        own = stages.setdefault(name, [])
        if path:
            own.append(replace(setting, path=path))
    return shared, stages


def options_for(base: Settings, common: Sequence[Setting], special: Sequence[Setting]) -> list[Setting]:
    """The options of a stage: its own, and those for all that neither they nor the result of a stage stand before."""
    own = {each.path for each in special}
    return [*(each for each in common if each.path not in own and not is_taken(each, base)), *special]


def is_taken(option: Setting, base: Settings) -> bool:
    """Whether an option would replace what a stage takes from an earlier one."""
    path = f"{option.path}.name" if option.path in RUN_SCOPE.slots else option.path
    section, _, key = path.partition(".")
    if section == "model" and start_of(base) is not None:
        return key not in Model.model_fields
    return path in base and reference_in(base[path]) is not None


def told_once(wrong: Mapping[str, Sequence[str]], common: Sequence[Setting]) -> Iterator[str]:
    """The problems of all stages, each with its stage; what is wrong in every one is told once.

    Of an option for all that is wrong in some it is said how to give it to another alone.
    """
    everywhere = [line for line in next(iter(wrong.values())) if all(line in each for each in wrong.values())]
    yield from everywhere
    for name, lines in wrong.items():
        for line in (line for line in lines if line not in everywhere):
            other = next((each for each in wrong if line not in wrong[each]), name)
            option = next((each for each in common if line.startswith(f"--{each.path}: ")), None)
            hint = f"; for one stage alone: --{STAGES}.{other}.{option.path}" if option else ""
            yield f"stage {name}: {line}{hint}"
