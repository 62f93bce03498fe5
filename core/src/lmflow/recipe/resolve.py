"""The recipe: the complete, validated description of one run, and where each of its values came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from lmflow.components import (
    Component,
    Model,
    Tracker,
)
from lmflow.errors import LmflowError, RecipeError
from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.plugins.faults import blaming, failing_options
from lmflow.recipe.choice import Choice
from lmflow.recipe.choices import choose, choose_trackers, find_choice, missing_packages, not_installed
from lmflow.recipe.gather import gather
from lmflow.recipe.placement import placement_problems
from lmflow.recipe.preferences import faulty_preferences
from lmflow.recipe.recipe import Recipe, ResolvedRecipe
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.recipe.settings import (
    LAUNCH,
    RUN_SCOPE,
    TRACKERS,
    TRAINING,
    Origin,
    Scope,
    Setting,
    of_section,
)
from lmflow.recipe.sources import check_sources, sources_of
from lmflow.recipe.values import explain_errors, option_type, parse_option

PREFERRING = ("tuner", "optimizer", "aligner")
"""Slots whose components may prefer other defaults (`Component.preferred`); of several the last wins."""
CHOOSING_ORDER = (
    "tuner",
    "aligner",
    *(slot for slot in RECIPE_SLOTS if slot not in ("tuner", "aligner", "reward")),
    "reward",
)


def resolve(plugins: Plugins, file: Path | None = None, options: Sequence[Setting] = ()) -> ResolvedRecipe:
    """Defaults, then the file, then the options, all checked.

    Raises RecipeError with every mistake at once, each with its place and, for a misspelt name, the nearest valid one.
    """
    problems: list[str] = []
    settings = gather(file, options, RUN_SCOPE, problems)
    check_sources(settings, problems)
    chosen: dict[str, Choice | None] = {}
    for slot in CHOOSING_ORDER:
        preferred = _default_reward(chosen["data"]) if slot == "reward" else _preferred_name(chosen, slot)
        chosen[slot] = choose(plugins, slot, settings, problems, preferred)
    chosen = {slot: chosen[slot] for slot in RECIPE_SLOTS}
    trackers = choose_trackers(plugins, settings, problems)
    parts, origins = _build_chosen({**chosen, **trackers}, settings, plugins, problems)
    given = _training_section(settings, chosen, plugins, problems)
    parts[TRAINING] = _build(TRAINING, TrainingOptions, given, origins, problems)
    parts[LAUNCH] = _launch(settings, [*chosen.values(), *trackers.values()], plugins, origins, problems)
    problems += faulty_preferences(chosen, PREFERRING, CHOOSING_ORDER, plugins)
    problems += _incompatibilities(chosen, trackers)
    problems += [problem for choice in chosen.values() if choice for problem in _required(choice, parts[choice.slot])]
    problems += placement_problems(parts["model"], parts["tuner"], parts[LAUNCH], settings, plugins.classes("tuner"))
    if problems:
        raise RecipeError(problems)
    names = {section: choice.written for section, choice in chosen.items() if choice}
    listening = [parts.pop(section) for section in trackers]
    names |= {f"{TRACKERS}.{choice.component.name}": choice.written for choice in trackers.values()}
    sources = sources_of([*chosen.values(), *trackers.values()], plugins)
    recipe = Recipe(names=names, sources=sources, trackers=cast(list[Tracker], listening), **parts)
    return ResolvedRecipe(recipe, origins)


def resolve_parts(plugins: Plugins, scope: Scope, options: Sequence[Setting]) -> dict[str, Any]:
    """The components and sections of a command that is not a run, by name; a slot nothing fills has None.

    Raises RecipeError with every mistake at once, as `resolve` does.
    """
    problems: list[str] = []
    settings = gather(None, options, scope, problems)
    for path in settings.keys() & set(scope.hidden):
        problems.append(f"{settings.pop(path).place}: it means nothing to lmflow {scope.command}")
    chosen = {slot: choose(plugins, slot, settings, problems) for slot in scope.slots}
    parts, origins = _build_chosen(chosen, settings, plugins, problems)
    for section, owner in scope.sections.items():
        preferred = {
            key: Setting(f"{section}.{key}", value, Origin("default"))
            for key, value in scope.preferred_in(section).items()
        }
        given = _known_settings(settings, section, owner, plugins, problems)
        parts[section] = _build(section, owner, preferred | given, origins, problems)
    problems += _incompatibilities(chosen)
    problems += [problem for choice in chosen.values() if choice for problem in _required(choice, parts[choice.slot])]
    if problems:
        raise RecipeError(problems)
    return parts


def chosen_components(
    plugins: Plugins, file: Path | None, options: Sequence[Setting], scope: Scope = RUN_SCOPE
) -> dict[str, type[Component]]:
    """The components a recipe and options name, by section, as far as they can be found: what the help shows."""
    ignored: list[str] = []
    settings = gather(file, options, scope, ignored)
    chosen = {slot: choose(plugins, slot, settings, ignored) for slot in scope.slots}
    if scope.trackers:
        chosen |= choose_trackers(plugins, settings, ignored)
    return {section: choice.component for section, choice in chosen.items() if choice}


def model_from_reference(plugins: Plugins, reference: str, place: str = "--model") -> Model:
    """The model that `--model REFERENCE` means: a component, a run, an adapter or model directory, a hub name.

    Raises RecipeError, naming the `place` where the reference stands, when it means nothing.
    """
    setting = Setting("model.name", reference, Origin("option", place))
    try:
        choice = find_choice(plugins, "model", setting)
    except LmflowError as error:
        raise RecipeError([f"{setting.place}: {error}"]) from None
    if missing := missing_packages(choice):
        raise RecipeError(missing)
    problems: list[str] = []
    given = {key: Setting(f"model.{key}", value, setting.origin) for key, value in choice.implied.items()}
    model = _build("model", choice.component, given, {}, problems, plugins.describe_owner("model", choice.component))
    if problems:
        raise RecipeError(problems)
    return cast(Model, model)


def _preferred(chosen: Mapping[str, Choice | None], section: str) -> dict[str, Setting]:
    """What tuner, optimizer and aligner prefer in a section, by field; of several the last wins."""
    found: dict[str, Setting] = {}
    for slot in PREFERRING:
        choice = chosen.get(slot)
        if choice is None or slot == section:
            continue
        origin = Origin("plugin", f"{slot} {choice.component.name}")
        for path, value in choice.component.preferred.items():
            of, _, key = path.partition(".")
            if of == section:
                found[key] = Setting(path, value, origin)
    return found


def _preferred_name(chosen: Mapping[str, Choice | None], slot: str) -> Setting | None:
    """The component that those chosen already prefer in a slot."""
    return _preferred(chosen, slot).get("name")


def _default_reward(data: Choice | None) -> Setting | None:
    """The reward that belongs to the data."""
    name = getattr(data.component, "reward", None) if data else None
    return None if name is None else Setting("reward.name", name, Origin("plugin", "data"))


# Checking


def _build_chosen(
    chosen: Mapping[str, Choice | None], settings: Mapping[str, Setting], plugins: Plugins, problems: list[str]
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The chosen components by section, None in those left empty, and the origin of each of their values."""
    parts: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for section, choice in chosen.items():
        parts[section] = None
        if choice is not None:
            origins[f"{section}.name"] = choice.origin
            preferred = _preferred(chosen, section)
            preferred.pop("name", None)
            known = {key: each for key, each in preferred.items() if key in choice.component.model_fields}
            given = known | _section(settings, section, choice, plugins, problems)
            who = plugins.describe_owner(choice.slot, choice.component)
            parts[section] = _build(section, choice.component, given, origins, problems, who)
    return parts, origins


def _section(
    settings: Mapping[str, Setting], section: str, choice: Choice, plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """A component's settings by field; unknown ones become problems."""
    given = {key: Setting(f"{section}.{key}", value, choice.origin) for key, value in choice.implied.items()}
    for key, setting in of_section(settings, section):
        if key == "name":
            continue
        if key not in choice.component.model_fields:
            problems.append(f"{setting.place}: {_unknown_key(key, section, choice.component, plugins)}")
        elif key in given:
            problems.append(
                f"{setting.place}: given twice (--{section} {choice.written}:{given[key].value} sets it too)"
            )
        else:
            given[key] = setting
    return given


def _training_section(
    settings: Mapping[str, Setting], chosen: Mapping[str, Choice | None], plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """Training settings, over the defaults that the chosen components prefer."""
    preferred = _preferred(chosen, TRAINING).items()
    known = {key: setting for key, setting in preferred if key in TrainingOptions.model_fields}
    return known | _known_settings(settings, TRAINING, TrainingOptions, plugins, problems)


def _launch(
    settings: Mapping[str, Setting],
    chosen: Iterable[Choice | None],
    plugins: Plugins,
    origins: dict[str, Origin],
    problems: list[str],
) -> LaunchOptions | None:
    """In how many processes the run is carried out; what the chosen components, or what is installed, forbid."""
    given = _known_settings(settings, LAUNCH, LaunchOptions, plugins, problems)
    options = cast(LaunchOptions | None, _build(LAUNCH, LaunchOptions, given, origins, problems))
    if options is None:
        return None
    if options.total > 1:
        place = given["processes"].place if "processes" in given else LAUNCH
        problems += [
            f"{place}: {why}" for why in single_process_reasons(choice.component for choice in chosen if choice)
        ]
    if missing := options.missing():
        problems.append(f"{given['strategy'].place}: {missing}")
    return options


def _known_settings(
    settings: Mapping[str, Setting], section: str, owner: type[BaseModel], plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """A plain section's settings by field; unknown ones become problems."""
    given: dict[str, Setting] = {}
    for key, setting in of_section(settings, section):
        if key in owner.model_fields:
            given[key] = setting
        else:
            problems.append(f"{setting.place}: {_unknown_key(key, section, owner, plugins)}")
    return given


def _unknown_key(key: str, section: str, owner: type[BaseModel], plugins: Plugins) -> str:
    """What to say of an option that `owner` does not have: the nearest one, or whose option it is."""
    whole = key.partition(".")[0]
    if whole != key and whole in owner.model_fields:
        return f"unknown option; {section}.{whole} is set as a whole: {option_type(owner.model_fields[whole])}"
    near = difflib.get_close_matches(key, owner.model_fields, n=1)
    if near:
        return f"unknown option; did you mean {section}.{near[0]}?"
    for slot in RECIPE_SLOTS:
        for name, offers in plugins.offers(slot).items():
            if key in offers[0].component.model_fields:
                same = slot == section
                return f"unknown option; {slot}.{key} is an option of {slot} {name}" + (", not chosen" if same else "")
    if key in TrainingOptions.model_fields:
        return f"unknown option; did you mean {TRAINING}.{key}?"
    return f"unknown option; there are {', '.join(owner.model_fields) or 'none'}"


def _build(
    section: str,
    owner: type[BaseModel],
    given: Mapping[str, Setting],
    origins: dict[str, Origin],
    problems: list[str],
    who: str = "",
) -> BaseModel | None:
    """The section's validated options; what is wrong with them becomes problems.

    Raises PluginError where `who`, the component, cannot check them itself.
    """
    values = {}
    for key, setting in given.items():
        as_text = setting.origin.kind == "option" and isinstance(setting.value, str)
        values[key] = parse_option(setting.value, owner.model_fields[key]) if as_text else setting.value
    for key in owner.model_fields:
        origins[f"{section}.{key}"] = given[key].origin if key in given else Origin("default")
    try:
        with blaming(who or section, lambda error: _checked(section, owner, given, error)):
            return owner.model_validate(values)
    except ValidationError as error:
        for key, said in explain_errors(owner, error.errors()):
            place = given[key].place if key in given else f"{section}.{key}".rstrip(".")
            line = f"{place}: {said}"
            if line not in problems:
                problems.append(line)
        return None


def _checked(section: str, owner: type[BaseModel], given: Mapping[str, Setting], error: BaseException) -> str:
    """Which options a component was checking when it failed: those the traceback tells of, or all that were given."""
    keys = failing_options(owner, error) or list(given)
    options = ", ".join(given[key].place if key in given else f"{section}.{key}" for key in keys)
    return f"checking {options}" if options else "making it with its defaults"


def _incompatibilities(chosen: Mapping[str, Choice | None], trackers: Mapping[str, Choice] | None = None) -> list[str]:
    """Packages that are missing, needs that are not met, and conflicts that are."""
    problems = []
    for choice in [*chosen.values(), *(trackers or {}).values()]:
        if choice is None:
            continue
        problems += missing_packages(choice)
        who = f"{choice.slot} {choice.component.name}"
        for need in choice.component.needs:
            if need.slot not in chosen:
                continue  # the command has no such slot
            filled = chosen[need.slot]
            if filled is None or (need.names and filled.component.name not in need.names):
                wanted = f" ({' or '.join(need.names)})" if need.names else ""
                problems.append(f"{who} needs a {need.slot}{wanted}: {need.because}")
        for conflict in choice.component.conflicts:
            other = chosen.get(conflict.slot)
            if other is not None and (not conflict.names or other.component.name in conflict.names):
                problems.append(f"{who} does not go with {conflict.slot} {other.component.name}: {conflict.because}")
    return problems


def _required(choice: Choice, component: Component | None) -> Iterator[str]:
    """What to say of each package that the component's options ask for and that is not installed."""
    for each in component.required() if component else ():
        if not each.installed:
            yield not_installed(choice, each)


def single_process_reasons(components: Iterable[type[Component] | Component]) -> Iterator[str]:
    """Why a run with these components has to be one process, a line for each that cannot be in several."""
    for component in components:
        if component.one_process is not None:
            yield f"{component.name} works in one process only: {component.one_process}"


# Writing
