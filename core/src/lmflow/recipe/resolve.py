"""The recipe: the complete, validated description of one run, and where each of its values came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lmflow.components import (
    Component,
    Model,
    Tracker,
)
from lmflow.errors import LmflowError, RecipeError
from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.recipe.building import build, unknown_key
from lmflow.recipe.choice import Choice
from lmflow.recipe.choices import choose, choose_trackers, find_choice, missing_packages, not_installed
from lmflow.recipe.format_options import format_parts
from lmflow.recipe.gather import gather
from lmflow.recipe.placement import placement_problems
from lmflow.recipe.preferences import faulty_preferences
from lmflow.recipe.recipe import Recipe, ResolvedRecipe
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.settings import (
    DATA,
    LAUNCH,
    PLAIN,
    RUN_SCOPE,
    TRACKERS,
    TRAINING,
    Origin,
    Scope,
    Setting,
    of_section,
)
from lmflow.recipe.sources import check_sources, sources_of

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
    return resolve_settings(plugins, gather(file, options, RUN_SCOPE, problems), problems)


def resolve_settings(plugins: Plugins, settings: Mapping[str, Setting], problems: list[str]) -> ResolvedRecipe:
    """The recipe of settings by path; raises RecipeError with all that is wrong in them, after `problems`."""
    check_sources(settings, problems)
    chosen: dict[str, Choice | None] = {}
    for slot in CHOOSING_ORDER:
        preferred = _default_reward(chosen["data"]) if slot == "reward" else _preferred_name(chosen, slot)
        chosen[slot] = choose(plugins, slot, settings, problems, preferred)
    chosen = {slot: chosen[slot] for slot in RECIPE_SLOTS}
    trackers = choose_trackers(plugins, settings, problems)
    parts, origins = _build_chosen({**chosen, **trackers}, settings, PLAIN, plugins, problems)
    parts |= format_parts(parts.pop(DATA), settings, PLAIN[DATA], plugins, origins, problems)
    for section in (DATA, TRAINING):
        given = _plain_section(section, settings, chosen, plugins, problems)
        parts[section] = build(section, PLAIN[section], given, origins, problems)
    parts[LAUNCH] = _launch(settings, [*chosen.values(), *trackers.values()], plugins, origins, problems)
    problems += faulty_preferences(chosen, PREFERRING, CHOOSING_ORDER, plugins)
    problems += _incompatibilities(chosen, trackers)
    problems += _missing_for_options(chosen, parts)
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

    With slot data, `format` is the data format (None: to be recognised), `format_options` are options for the one that
    is recognised, and `data` the plain section.

    Raises RecipeError with every mistake at once, as `resolve` does.
    """
    problems: list[str] = []
    settings = gather(None, options, scope, problems)
    for path in settings.keys() & set(scope.hidden):
        problems.append(f"{settings.pop(path).place}: it means nothing to lmflow {scope.command}")
    chosen = {slot: choose(plugins, slot, settings, problems) for slot in scope.slots}
    parts, origins = _build_chosen(chosen, settings, scope.sections, plugins, problems)
    if DATA in chosen:
        parts |= format_parts(parts.pop(DATA), settings, scope.sections[DATA], plugins, origins, problems)
    for section, owner in scope.sections.items():
        preferred = {
            key: Setting(f"{section}.{key}", value, Origin("default"))
            for key, value in scope.preferred_in(section).items()
        }
        given = _known_settings(settings, section, owner, plugins, problems)
        parts[section] = build(section, owner, preferred | given, origins, problems)
    problems += _incompatibilities(chosen)
    problems += _missing_for_options(chosen, parts)
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
    model = build("model", choice.component, given, {}, problems, plugins.describe_owner("model", choice.component))
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
    chosen: Mapping[str, Choice | None],
    settings: Mapping[str, Setting],
    plain: Mapping[str, type[BaseModel]],
    plugins: Plugins,
    problems: list[str],
) -> tuple[dict[str, Any], dict[str, Origin]]:
    """The chosen components by section, None in those left empty, and the origin of each of their values.

    A section in `plain` has options beside those of its component, which are left to others.
    """
    parts: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for section, choice in chosen.items():
        parts[section] = None
        if choice is not None:
            origins[f"{section}.name"] = choice.origin
            preferred = _preferred(chosen, section)
            preferred.pop("name", None)
            known = {key: each for key, each in preferred.items() if key in choice.component.model_fields}
            beside = plain[section].model_fields if section in plain else {}
            given = known | _section(settings, section, choice, beside, plugins, problems)
            who = plugins.describe_owner(choice.slot, choice.component)
            parts[section] = build(section, choice.component, given, origins, problems, who)
    return parts, origins


def _section(
    settings: Mapping[str, Setting],
    section: str,
    choice: Choice,
    beside: Mapping[str, FieldInfo],
    plugins: Plugins,
    problems: list[str],
) -> dict[str, Setting]:
    """A component's settings by field; unknown ones become problems, those `beside` it are left out."""
    given = {key: Setting(f"{section}.{key}", value, choice.origin) for key, value in choice.implied.items()}
    for key, setting in of_section(settings, section):
        if key == "name" or key in beside:
            continue
        fields = choice.component.model_fields
        if key not in fields:
            problems.append(f"{setting.place}: {unknown_key(key, section, {**beside, **fields}, plugins)}")
        elif key in given:
            problems.append(
                f"{setting.place}: given twice (--{section} {choice.written}:{given[key].value} sets it too)"
            )
        else:
            given[key] = setting
    return given


def _plain_section(
    section: str,
    settings: Mapping[str, Setting],
    chosen: Mapping[str, Choice | None],
    plugins: Plugins,
    problems: list[str],
) -> dict[str, Setting]:
    """A section's plain settings, over the defaults that the chosen components prefer."""
    owner, preferred = PLAIN[section], _preferred(chosen, section)
    known = {key: setting for key, setting in preferred.items() if key in owner.model_fields}
    return known | _known_settings(settings, section, owner, plugins, problems)


def _launch(
    settings: Mapping[str, Setting],
    chosen: Iterable[Choice | None],
    plugins: Plugins,
    origins: dict[str, Origin],
    problems: list[str],
) -> LaunchOptions | None:
    """In how many processes the run is carried out; what the chosen components, or what is installed, forbid."""
    given = _known_settings(settings, LAUNCH, LaunchOptions, plugins, problems)
    options = cast(LaunchOptions | None, build(LAUNCH, LaunchOptions, given, origins, problems))
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
    """A plain section's settings by field; unknown ones become problems, but where a component may have them."""
    given: dict[str, Setting] = {}
    for key, setting in of_section(settings, section):
        if key in owner.model_fields:
            given[key] = setting
        elif section not in RECIPE_SLOTS:
            problems.append(f"{setting.place}: {unknown_key(key, section, owner.model_fields, plugins)}")
    return given


def _incompatibilities(chosen: Mapping[str, Choice | None], trackers: Mapping[str, Choice] | None = None) -> list[str]:
    """Packages that are missing, needs that are not met, and conflicts that are."""
    problems = []
    for choice in [*chosen.values(), *(trackers or {}).values()]:
        if choice is None:
            continue
        problems += missing_packages(choice)
        who = f"{choice.slot} {choice.component.name}"
        for need in choice.component.needs:
            if need.slot not in chosen or (need.slot == DATA and not need.names):
                continue  # the command has no such slot, or whatever is recognised will do
            filled = chosen[need.slot]
            if filled is None or (need.names and filled.component.name not in need.names):
                wanted = f" ({' or '.join(need.names)})" if need.names else ""
                problems.append(f"{who} needs a {need.slot}{wanted}: {need.because}")
        for conflict in choice.component.conflicts:
            other = chosen.get(conflict.slot)
            if other is not None and (not conflict.names or other.component.name in conflict.names):
                problems.append(f"{who} does not go with {conflict.slot} {other.component.name}: {conflict.because}")
    return problems


def _missing_for_options(chosen: Mapping[str, Choice | None], parts: Mapping[str, Any]) -> Iterator[str]:
    """What to say of each package that the options of the components ask for and that is not installed."""
    for slot, choice in chosen.items():
        component: Component | None = parts["format" if slot == DATA else slot]
        if choice and component:
            yield from (not_installed(choice, each) for each in component.required() if not each.installed)


def single_process_reasons(components: Iterable[type[Component] | Component]) -> Iterator[str]:
    """Why a run with these components has to be one process, a line for each that cannot be in several."""
    for component in components:
        if component.one_process is not None:
            yield f"{component.name} works in one process only: {component.one_process}"


# Writing
