"""Settings of a command by path: those of a file, and options in their place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lmflow.recipe.settings import PLAIN, SOURCES, STAGES, TRACKERS, Scope, Setting
from lmflow.recipe.yaml import read_settings


def gather(file: Path | None, options: Sequence[Setting], scope: Scope, problems: list[str]) -> dict[str, Setting]:
    """Settings by path; an option replaces what the file says, two options for one path are a mistake."""
    return merge([] if file is None else read_settings(file, problems), options, scope, problems)


def merge(
    written: Iterable[Setting], options: Sequence[Setting], scope: Scope, problems: list[str]
) -> dict[str, Setting]:
    """The same for settings that are read already.

    Where an option names another component than the file does, what the file says of that one no longer applies.
    """
    seen: dict[str, Setting] = {}
    for option in options:
        names_component = option.path in scope.slots or (scope.trackers and option.path == TRACKERS)
        path = f"{option.path}.name" if names_component else option.path
        if path in seen:
            problems.append(f"{option.place}: given twice ({seen[path].value!r} and {option.value!r})")
        seen[path] = Setting(path, option.value, option.origin)
    settings = over(written, seen.values())
    for path, setting in settings.items():
        section = path.partition(".")[0]
        if section not in scope.names and not (section == SOURCES and setting.origin.kind in ("file", "argument")):
            near = difflib.get_close_matches(section, scope.names, n=1)
            where = replace(setting, path=section).place
            hint = f"did you mean {near[0]}?" if near else f"lmflow {scope.command} has {', '.join(scope.names)}"
            hint = "stages stand at the top of a recipe file, beside its sections" if section == STAGES else hint
            line = f"{where}: unknown section; {hint}"
            problems += [] if line in problems else [line]
    return settings


def over(written: Iterable[Setting], own: Iterable[Setting]) -> dict[str, Setting]:
    """Settings over others, by path; naming another component leaves out the options of the one below."""
    below, above = ({setting.path: setting for setting in each} for each in (written, own))
    for path, setting in above.items():
        section, _, key = path.partition(".")
        if key == "name" and (path not in below or below[path].value != setting.value):
            below = {each: known for each, known in below.items() if not _is_of_component(each, section)}
    return below | above


def _is_of_component(path: str, section: str) -> bool:
    """Whether a path is an option in a section, and none of its plain ones."""
    of, _, key = path.partition(".")
    return of == section and not (of in PLAIN and key in PLAIN[of].model_fields)
