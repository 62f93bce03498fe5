"""Choosing components: from the names in a recipe to the classes that installed plugins offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lmflow.components import Model, Requirement
from lmflow.errors import LmflowError, PluginError
from lmflow.plugins import Plugins
from lmflow.plugins.faults import blaming
from lmflow.recipe.choice import Choice
from lmflow.recipe.settings import DATA, TRACKERS, Origin, Setting, of_section
from lmflow.recipe.sources import find_recorded
from lmflow.run_files import read_record, resume_command

NOTHING = ("none", "null", "~")
OPTIONAL = ("reward", "context", "attention")
"""Slots a recipe may leave empty."""


def choose(
    plugins: Plugins, slot: str, settings: Mapping[str, Setting], problems: list[str], preferred: Setting | None = None
) -> Choice | None:
    """The component in `slot`, None where it stays empty or the choice is a mistake, which becomes a problem.

    A data format stays empty where it is to be recognised.
    """
    setting = settings.get(f"{slot}.name")
    if slot == DATA and is_to_be_recognised(settings, preferred):
        return None
    if setting is None or (slot == DATA and is_nothing(setting.value)):
        name = default_name(slot, settings)
        if preferred is None and name is None:
            _, stray = next(of_section(settings, slot), ("", None))
            if stray is not None:
                problems.append(f"{stray.place}: set, but no {slot} is chosen; name one with --{slot}")
            return None
        setting = preferred or Setting(f"{slot}.name", name, Origin("default"))
    if slot in OPTIONAL and is_nothing(setting.value):
        return None
    if not isinstance(setting.value, str):
        got = "nothing" if setting.value is None else repr(setting.value)
        offered = ", ".join(sorted(plugins.offers(slot)))
        problems.append(f"{setting.place}: expected a component's name, got {got}; there are {offered}")
        return None
    return _found(plugins, slot, setting, settings, problems)


def is_to_be_recognised(settings: Mapping[str, Setting], preferred: Setting | None = None) -> bool:
    """Whether the records of a place that is named are to say themselves which format they have."""
    setting = settings.get(f"{DATA}.name")
    named = preferred is not None if setting is None else not is_nothing(setting.value)
    given = (settings.get(f"{DATA}.{key}") for key in ("path", "mix"))
    return not named and any(each is not None and each.value != {} and not is_nothing(each.value) for each in given)


def is_nothing(value: object) -> bool:
    """Whether a name says that the slot is to be left empty."""
    return value is None or value in NOTHING


def choose_trackers(plugins: Plugins, settings: Mapping[str, Setting], problems: list[str]) -> dict[str, Choice]:
    """The trackers named, by section (`trackers.tensorboard`); mistakes become problems."""
    chosen: dict[str, Choice] = {}
    for name, setting in _tracker_names(settings, problems):
        choice = _found(plugins, "tracker", Setting(setting.path, name, setting.origin), settings, problems)
        if choice is None:
            continue
        if any(each.component is choice.component for each in chosen.values()):
            problems.append(f"{setting.place}: tracker {name} is named twice")
        chosen[f"{TRACKERS}.{name}"] = choice
    problems += _strays(settings, chosen)
    return chosen


def _strays(settings: Mapping[str, Setting], chosen: Mapping[str, Choice]) -> list[str]:
    """Options of trackers that are not chosen; those of a file mean nothing once options name other trackers."""
    named = tuple(f"{section}." for section in chosen)
    naming = settings.get(f"{TRACKERS}.name")
    replaced = naming is not None and naming.origin.kind == "option"
    return [
        f"{setting.place}: tracker {path.rpartition('.')[0] or path} is not chosen; name it with --{TRACKERS}"
        for path, setting in of_section(settings, TRACKERS)
        if path != "name" and not setting.path.startswith(named) and not (replaced and setting.origin.kind == "file")
    ]


def _tracker_names(settings: Mapping[str, Setting], problems: list[str]) -> Iterator[tuple[str, Setting]]:
    setting = settings.get(f"{TRACKERS}.name")
    if setting is None or is_nothing(setting.value):
        return
    value = setting.value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        problems.append(f"{setting.place}: expected names of trackers (tensorboard,mlflow), got {value!r}")
        return
    yield from ((name, setting) for name in names)


def _found(
    plugins: Plugins, slot: str, setting: Setting, settings: Mapping[str, Setting], problems: list[str]
) -> Choice | None:
    reference = str(setting.value)
    try:
        recorded = find_recorded(plugins, slot, reference, settings) if setting.origin.kind != "option" else None
        if recorded is not None:
            return Choice(slot, recorded, reference, setting)
        return find_choice(plugins, slot, setting)
    except LmflowError as error:
        problems.append(f"{setting.place}: {error}")
        return None


def find_choice(plugins: Plugins, slot: str, setting: Setting) -> Choice:
    """The component a name stands for: NAME, DISTRIBUTION:NAME, NAME:VALUE, or for a model anything that is one.

    Raises LmflowError when it stands for none, or for several.
    """
    reference = str(setting.value)
    component = plugins.lookup(slot, reference)
    if component is not None:
        return Choice(slot, component, reference, setting)
    name, _, value = reference.partition(":")
    component = plugins.lookup(slot, name) if value else None
    if component is not None:
        if component.shorthand is None:
            raise PluginError(f"{slot} {name} takes no value after a colon")
        return Choice(slot, component, name, setting, {component.shorthand: value})
    if slot == "model":
        found = _recognise_model(plugins, reference, setting)
        if found:
            return found
    return Choice(slot, plugins.find(slot, reference), reference, setting)


def _recognise_model(plugins: Plugins, reference: str, setting: Setting) -> Choice | None:
    """A run's result, a directory some component recognises, or what could be a path or hub name."""
    followed = result_of_run(Path(reference)) or reference
    for component in plugins.classes("model"):
        with blaming(plugins.describe_owner("model", component), f"recognises({followed!r})"):
            recognised = component.recognises(followed)
        if recognised:
            return Choice("model", component, component.name, setting, {component.shorthand: followed})
    looks_like_place = "/" in reference or reference.startswith(".") or Path(reference).exists()
    fallback = plugins.lookup("model", "pretrained") if looks_like_place else None
    return Choice("model", fallback, "pretrained", setting, {"path": followed}) if fallback else None


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
            f"finish it with {resume_command(directory)}"
        )
    return str(directory / record["result"])


def default_name(slot: str, settings: Mapping[str, Setting]) -> str | None:
    """What fills a slot that nothing names; None leaves it empty."""
    given = any(path.removeprefix(f"{slot}.") not in Model.model_fields for path, _ in of_section(settings, slot))
    defaults = {
        "model": "pretrained" if given else "demo",
        "data": "demo",
        "tuner": "full",
        "optimizer": "adamw",
        "schedule": "cosine",
        "aligner": "sft",
        "inferencer": "hf",
    }
    return defaults.get(slot)


def missing_packages(choice: Choice) -> list[str]:
    """What to say of each package the chosen component needs and that is not installed."""
    return [not_installed(choice, each) for each in choice.component.missing()]


def not_installed(choice: Choice, package: Requirement) -> str:
    """What to say of a package that the chosen component needs and that is not installed."""
    return (
        f"{choice.slot} {choice.component.name} needs {package.module}, which is not installed: "
        f"pip install {package.install}"
    )
