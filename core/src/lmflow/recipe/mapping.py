"""A recipe as Python values: nested mappings like the YAML's, and dotted keys."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lmflow.recipe.settings import OPTIONS_ONLY, STAGES, TRACKERS, Origin, Setting
from lmflow.recipe.stage_names import faulty_name

ARGUMENT = Origin("argument")


def read_mapping(recipe: Mapping[str, Any], problems: list[str]) -> Iterator[Setting]:
    """Every value of a recipe given in Python, as `read_settings` reads those of a file.

    A section is a component's name, or a mapping with `name` and its options; a key with a dot is an option
    ("training.learning_rate"); `stages` are recipes by name, or a list of recipes with a `name`. Mistakes of form are
    added to `problems`.
    """
    for section, value in recipe.items():
        if "." in section:
            yield _setting(section, value)
        elif section == STAGES:
            yield from _stages(value, problems)
        elif section == TRACKERS and isinstance(value, Mapping):
            yield _setting(f"{section}.name", list(value))
            for name, options in value.items():
                yield from _section(f"{section}.{name}", options, problems)
        elif isinstance(value, Mapping) or section in OPTIONS_ONLY:
            yield from _section(section, value, problems)
        else:
            yield _setting(f"{section}.name", value)


def _stages(stages: Any, problems: list[str]) -> Iterator[Setting]:
    """The values of every stage, below its name."""
    for name, sections in named_stages(stages, problems):
        start = f"{STAGES}.{name}"
        yield _setting(start, None)
        if isinstance(sections, Mapping):
            inner = read_mapping(sections, problems)
            yield from (replace(setting, path=f"{start}.{setting.path}") for setting in inner)
        elif sections is not None:
            problems.append(f"{start}: expected sections by name, got {sections!r}")


def named_stages(stages: Any, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Names and sections of stages; what cannot be one becomes a problem."""
    pairs: Iterable[tuple[Any, Any]] = stages.items() if isinstance(stages, Mapping) else ()
    if isinstance(stages, list | tuple):
        pairs = [_named_item(each) for each in stages]
    seen: set[str] = set()
    for name, sections in pairs:
        unnamed = "each stage of a list needs a name" if name is None else f"{name!r} is no name: it has to be text"
        fault = faulty_name(name) if isinstance(name, str) else unnamed
        fault = f"{name} is given twice" if isinstance(name, str) and name in seen else fault
        if fault:
            problems.append(f"{STAGES}: {fault}")
        else:
            seen.add(name)
            yield name, sections
    if not pairs:
        problems.append(f"{STAGES}: expected recipes by name, got {stages!r}")


def _named_item(item: Any) -> tuple[Any, Any]:
    """The name of a list's stage, None if it has none, and its sections."""
    if not isinstance(item, Mapping):
        return None, None
    return item.get("name"), {section: value for section, value in item.items() if section != "name"}


def _section(section: str, options: Any, problems: list[str]) -> Iterator[Setting]:
    """The options in a section; None has none, anything but a mapping is a problem."""
    if isinstance(options, Mapping):
        yield from (_setting(f"{section}.{key}", value) for key, value in options.items())
    elif options is not None:
        problems.append(f"{section}: expected options by name, got {options!r}")


def _setting(path: str, value: Any) -> Setting:
    return Setting(path, os.fspath(value) if isinstance(value, os.PathLike) else value, ARGUMENT)
