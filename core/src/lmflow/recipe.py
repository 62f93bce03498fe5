"""The recipe: the complete, validated description of one run, and where each of its values came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from lmflow.components import Aligner, Component, Context, DataFormat, Inferencer, Model, Reward, Tuner
from lmflow.errors import LmflowError, PluginError, RecipeError
from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.recipe_values import explain_error, parse_option
from lmflow.run_directory import read_record
from lmflow.training.options import TrainingOptions

TRAINING = "training"
SECTIONS = (*RECIPE_SLOTS, TRAINING)
NOTHING = ("none", "null", "~")
OPTIONAL = ("reward", "context")
"""Slots a recipe may leave empty."""


@dataclass(frozen=True)
class Origin:
    """Where a value came from: `kind` is default, file, option or plugin; `place` is a file:line or an option."""

    kind: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.place}".strip()


@dataclass(frozen=True)
class Setting:
    """A value somebody set, as it was written, at a dotted path ("tuner.rank")."""

    path: str
    value: Any
    origin: Origin


@dataclass(frozen=True)
class Scope:
    """What a command's options can set: components in slots, and the fields of plain sections.

    `preferred` are defaults, by dotted path, that the command puts before those of the classes; `aliases` are the
    command's short options and the dotted path each sets ("--device": "compute.device"); `hidden` are dotted paths that
    mean nothing to the command and are refused.
    """

    command: str
    slots: Sequence[str]
    sections: Mapping[str, type[BaseModel]]
    preferred: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        """Slots and sections alike."""
        return (*self.slots, *self.sections)

    def preferred_in(self, section: str) -> dict[str, Any]:
        """The command's own defaults of a section, by field."""
        parts = ((path.partition("."), value) for path, value in self.preferred.items())
        return {key: value for (of, _, key), value in parts if of == section}


RUN_SCOPE = Scope("run", RECIPE_SLOTS, {TRAINING: TrainingOptions})


@dataclass(frozen=True)
class Recipe:
    """One run, ready to be carried out."""

    model: Model
    context: Context | None
    data: DataFormat
    tuner: Tuner
    aligner: Aligner
    inferencer: Inferencer
    reward: Reward | None
    training: TrainingOptions
    names: Mapping[str, str] = field(default_factory=dict)
    """How each slot's component was named, where that is more than its own name (`distribution:name`)."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe, and the origin of every value by dotted path."""

    recipe: Recipe
    origins: Mapping[str, Origin]


def resolve(plugins: Plugins, file: Path | None = None, options: Sequence[Setting] = ()) -> ResolvedRecipe:
    """Defaults, then the file, then the options, all checked.

    Raises RecipeError with every mistake at once, each with its place and, for a misspelt name, the nearest valid one.
    """
    problems: list[str] = []
    settings = _gather(file, options, RUN_SCOPE, problems)
    chosen = {slot: _choose(plugins, slot, settings, problems) for slot in RECIPE_SLOTS if slot != "reward"}
    chosen["reward"] = _choose(plugins, "reward", settings, problems, _default_reward(chosen["data"]))
    parts: dict[str, BaseModel | None] = {}
    origins: dict[str, Origin] = {}
    for slot, choice in chosen.items():
        if choice is None:
            parts[slot] = None
            continue
        origins[f"{slot}.name"] = choice.origin
        given = _section(settings, slot, choice, plugins, problems)
        parts[slot] = _build(slot, choice.component, given, origins, problems)
    given = _training_section(settings, chosen, plugins, problems)
    parts[TRAINING] = _build(TRAINING, TrainingOptions, given, origins, problems)
    problems += _incompatibilities(chosen)
    if problems:
        raise RecipeError(problems)
    names = {slot: choice.written for slot, choice in chosen.items() if choice}
    recipe = Recipe(names=names, **cast(dict[str, Any], parts))
    return ResolvedRecipe(recipe, origins)


def resolve_parts(plugins: Plugins, scope: Scope, options: Sequence[Setting]) -> dict[str, Any]:
    """The components and sections of a command that is not a run, by name; a slot nothing fills has None.

    Raises RecipeError with every mistake at once, as `resolve` does.
    """
    problems: list[str] = []
    origins: dict[str, Origin] = {}
    settings = _gather(None, options, scope, problems)
    for path in settings.keys() & set(scope.hidden):
        problems.append(f"{_place(settings.pop(path))}: it means nothing to lmflow {scope.command}")
    chosen = {slot: _choose(plugins, slot, settings, problems) for slot in scope.slots}
    parts: dict[str, Any] = {}
    for slot, choice in chosen.items():
        given = {} if choice is None else _section(settings, slot, choice, plugins, problems)
        parts[slot] = choice and _build(slot, choice.component, given, origins, problems)
    for section, owner in scope.sections.items():
        preferred = {
            key: Setting(f"{section}.{key}", value, Origin("default"))
            for key, value in scope.preferred_in(section).items()
        }
        given = _known_settings(settings, section, owner, plugins, problems)
        parts[section] = _build(section, owner, preferred | given, origins, problems)
    problems += _incompatibilities(chosen)
    if problems:
        raise RecipeError(problems)
    return parts


@dataclass(frozen=True)
class Choice:
    """The component chosen for a slot, how it was named, and a field set by naming it (`python:module:function`)."""

    component: type[Component]
    written: str
    origin: Origin
    implied: Mapping[str, str] = field(default_factory=dict)


def chosen_components(
    plugins: Plugins, file: Path | None, options: Sequence[Setting], scope: Scope = RUN_SCOPE
) -> dict[str, type[Component]]:
    """The components a recipe and options name, as far as they can be found: what the help shows."""
    ignored: list[str] = []
    settings = _gather(file, options, scope, ignored)
    chosen = {slot: _choose(plugins, slot, settings, ignored) for slot in scope.slots}
    return {slot: choice.component for slot, choice in chosen.items() if choice}


def model_from_reference(plugins: Plugins, reference: str) -> Model:
    """The model that `--model REFERENCE` means: a component, a run, an adapter or model directory, a hub name.

    Raises RecipeError when it means nothing.
    """
    problems: list[str] = []
    setting = Setting("model.name", reference, Origin("option", "--model"))
    choice = _choose(plugins, "model", {"model.name": setting}, problems)
    if choice is None:
        raise RecipeError(problems)
    return cast(Model, choice.component.model_validate(dict(choice.implied)))


# Gathering


def _gather(file: Path | None, options: Sequence[Setting], scope: Scope, problems: list[str]) -> dict[str, Setting]:
    """Settings by path; an option replaces what the file says, two options for one path are a mistake."""
    settings: dict[str, Setting] = {}
    if file is not None:
        from lmflow.recipe_yaml import read_settings

        settings = {setting.path: setting for setting in read_settings(file, problems)}
    seen: dict[str, Setting] = {}
    for option in options:
        path = f"{option.path}.name" if option.path in scope.slots else option.path
        if path in seen:
            problems.append(f"{option.origin.place}: given twice ({seen[path].value!r} and {option.value!r})")
        seen[path] = Setting(path, option.value, option.origin)
    if "model.name" in seen:  # another model: the file's options of the one it names no longer apply
        settings = {path: setting for path, setting in settings.items() if not path.startswith("model.")}
    for path, setting in [*settings.items(), *seen.items()]:
        section = path.partition(".")[0]
        if section not in scope.names:
            near = difflib.get_close_matches(section, scope.names, n=1)
            where = setting.origin.place if setting.origin.kind == "option" else f"{setting.origin.place}: {section}"
            hint = f"did you mean {near[0]}?" if near else f"lmflow {scope.command} has {', '.join(scope.names)}"
            line = f"{where}: unknown section; {hint}"
            problems += [] if line in problems else [line]
    return settings | seen


def _place(setting: Setting) -> str:
    return setting.origin.place if setting.origin.kind == "option" else f"{setting.origin.place}: {setting.path}"


# Choosing


def _choose(
    plugins: Plugins, slot: str, settings: Mapping[str, Setting], problems: list[str], default: str | None = None
) -> Choice | None:
    setting = settings.get(f"{slot}.name")
    if setting is None:
        name = default or _default_name(slot, settings)
        if name is None:
            stray = next((s for path, s in settings.items() if path.startswith(f"{slot}.")), None)
            if stray is not None:
                problems.append(f"{_place(stray)}: set, but no {slot} is chosen; name one with --{slot}")
            return None
        setting = Setting(f"{slot}.name", name, Origin("plugin" if default else "default", "data" if default else ""))
    if slot in OPTIONAL and (setting.value is None or setting.value in NOTHING):
        return None
    if not isinstance(setting.value, str):
        problems.append(f"{_place(setting)}: expected the name of a {slot}, got {setting.value!r}")
        return None
    try:
        return _find(plugins, slot, setting)
    except LmflowError as error:
        problems.append(f"{_place(setting)}: {error}")
        return None


def _find(plugins: Plugins, slot: str, setting: Setting) -> Choice:
    """The component a name stands for: NAME, DISTRIBUTION:NAME, NAME:VALUE, or for a model anything that is one."""
    reference = str(setting.value)
    component = plugins.lookup(slot, reference)
    if component is not None:
        return Choice(component, reference, setting.origin)
    name, _, value = reference.partition(":")
    component = plugins.lookup(slot, name) if value else None
    if component is not None:
        if component.shorthand is None:
            raise PluginError(f"{slot} {name} takes no value after a colon")
        return Choice(component, name, setting.origin, {component.shorthand: value})
    if slot == "model":
        found = _recognise_model(plugins, reference, setting.origin)
        if found:
            return found
    return Choice(plugins.find(slot, reference), reference, setting.origin)


def _recognise_model(plugins: Plugins, reference: str, origin: Origin) -> Choice | None:
    """A run's result, a directory some component recognises, or what could be a path or hub name."""
    followed = result_of_run(Path(reference)) or reference
    for component in plugins.classes("model"):
        if component.recognises(followed):
            return Choice(component, component.name, origin, {component.shorthand: followed})
    looks_like_place = "/" in reference or reference.startswith(".") or Path(reference).exists()
    fallback = plugins.lookup("model", "pretrained") if looks_like_place else None
    return Choice(fallback, "pretrained", origin, {"path": followed}) if fallback else None


def result_of_run(directory: Path) -> str | None:
    """Where the run at `directory` left its result; None if it is no run.

    Raises LmflowError when the run has not produced one.
    """
    if not (directory / "run.json").is_file():
        return None
    record = read_record(directory)
    if "result" not in record:
        raise LmflowError(
            f"{directory} has no result yet (status: {record.get('status')}); "
            f"finish it with lmflow run --resume --output {directory}"
        )
    return str(directory / record["result"])


def _default_name(slot: str, settings: Mapping[str, Setting]) -> str | None:
    given = any(path.startswith(f"{slot}.") for path in settings)
    defaults = {
        "model": "pretrained" if given else "demo",
        "data": "auto" if "data.path" in settings else "demo",
        "tuner": "full",
        "aligner": "sft",
        "inferencer": "hf",
    }
    return defaults.get(slot)


def _default_reward(data: Choice | None) -> str | None:
    """The reward that belongs to the data."""
    return getattr(data.component, "reward", None) if data else None


# Checking


def _section(
    settings: Mapping[str, Setting], slot: str, choice: Choice, plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """The slot's settings by field; unknown ones become problems."""
    given = {
        field_name: Setting(f"{slot}.{field_name}", value, choice.origin)
        for field_name, value in choice.implied.items()
    }
    for setting in _of_section(settings, slot):
        key = setting.path.partition(".")[2]
        if key == "name":
            continue
        if key not in choice.component.model_fields:
            problems.append(f"{_place(setting)}: {_unknown_key(key, slot, choice.component, plugins)}")
        elif key in given:
            problems.append(
                f"{_place(setting)}: given twice (--{slot} {choice.written}:{given[key].value} sets it too)"
            )
        else:
            given[key] = setting
    return given


def _training_section(
    settings: Mapping[str, Setting], chosen: Mapping[str, Choice | None], plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """Training settings, over the defaults that tuner and aligner prefer (the aligner's last)."""
    given: dict[str, Setting] = {}
    for slot in ("tuner", "aligner"):
        choice = chosen[slot]
        if choice:
            origin = Origin("plugin", f"{slot} {choice.component.name}")
            preferred = choice.component.training_defaults
            given |= {key: Setting(f"{TRAINING}.{key}", value, origin) for key, value in preferred.items()}
    return given | _known_settings(settings, TRAINING, TrainingOptions, plugins, problems)


def _known_settings(
    settings: Mapping[str, Setting], section: str, owner: type[BaseModel], plugins: Plugins, problems: list[str]
) -> dict[str, Setting]:
    """A plain section's settings by field; unknown ones become problems."""
    given: dict[str, Setting] = {}
    for setting in _of_section(settings, section):
        key = setting.path.partition(".")[2]
        if key in owner.model_fields:
            given[key] = setting
        else:
            problems.append(f"{_place(setting)}: {_unknown_key(key, section, owner, plugins)}")
    return given


def _of_section(settings: Mapping[str, Setting], section: str) -> Iterator[Setting]:
    return (setting for path, setting in settings.items() if path.startswith(f"{section}."))


def _unknown_key(key: str, section: str, owner: type[BaseModel], plugins: Plugins) -> str:
    """What to say of an option that `owner` does not have: the nearest one, or whose option it is."""
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
) -> BaseModel | None:
    """The section's validated options; what is wrong with them becomes problems."""
    values = {}
    for key, setting in given.items():
        as_text = setting.origin.kind == "option" and isinstance(setting.value, str)
        values[key] = parse_option(setting.value, owner.model_fields[key]) if as_text else setting.value
    for key in owner.model_fields:
        origins[f"{section}.{key}"] = given[key].origin if key in given else Origin("default")
    try:
        return owner.model_validate(values)
    except ValidationError as error:
        for each in error.errors():
            key = str(each["loc"][0]) if each["loc"] else ""
            place = _place(given[key]) if key in given else f"{section}.{key}".rstrip(".")
            line = f"{place}: {explain_error(each)}"
            if line not in problems:
                problems.append(line)
        return None


def _incompatibilities(chosen: Mapping[str, Choice | None]) -> list[str]:
    """Needs that are not met and conflicts that are."""
    problems = []
    for slot, choice in chosen.items():
        if choice is None:
            continue
        who = f"{slot} {choice.component.name}"
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


# Writing


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every one of them explicit."""
    sections: dict[str, Any] = {}
    for slot in RECIPE_SLOTS:
        part: Component | None = getattr(recipe, slot)
        name = recipe.names.get(slot) or (part.name if part else None)
        sections[slot] = {"name": name, **part.model_dump(mode="json")} if part else None
    return sections | {TRAINING: recipe.training.model_dump(mode="json")}


def dump(recipe: Recipe) -> str:
    """The recipe as YAML. Resolving that text gives the same recipe, and dumping it the same text."""
    import yaml

    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def schema(plugins: Plugins) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file over all installed components, for editors."""
    sections = {slot: {"anyOf": list(_slot_schemas(plugins, slot))} for slot in RECIPE_SLOTS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lmflow recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": sections | {TRAINING: TrainingOptions.model_json_schema()},
    }


def _slot_schemas(plugins: Plugins, slot: str) -> Iterator[dict[str, Any]]:
    yield {"type": ["string", "null"], "description": f"Name of a {slot}: {', '.join(sorted(plugins.offers(slot)))}."}
    for name, offers in sorted(plugins.offers(slot).items()):
        described = offers[0].component.model_json_schema()
        described["properties"] = {"name": {"const": name}, **described.get("properties", {})}
        yield described
