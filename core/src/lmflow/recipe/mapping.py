"""A recipe as Python values: nested mappings like the YAML's, and dotted keys."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from lmflow.recipe.settings import OPTIONS_ONLY, TRACKERS, Origin, Setting

ARGUMENT = Origin("argument")


def read_mapping(recipe: Mapping[str, Any], problems: list[str]) -> Iterator[Setting]:
    """Every value of a recipe given in Python, as `read_settings` reads those of a file.

    A section is a component's name, or a mapping with `name` and its options; a key with a dot is an option
    ("training.learning_rate"). Mistakes of form are added to `problems`.
    """
    for section, value in recipe.items():
        if "." in section:
            yield _setting(section, value)
        elif section == TRACKERS and isinstance(value, Mapping):
            yield _setting(f"{section}.name", list(value))
            for name, options in value.items():
                yield from _section(f"{section}.{name}", options, problems)
        elif isinstance(value, Mapping) or section in OPTIONS_ONLY:
            yield from _section(section, value, problems)
        else:
            yield _setting(f"{section}.name", value)


def _section(section: str, options: Any, problems: list[str]) -> Iterator[Setting]:
    """The options in a section; None has none, anything but a mapping is a problem."""
    if isinstance(options, Mapping):
        yield from (_setting(f"{section}.{key}", value) for key, value in options.items())
    elif options is not None:
        problems.append(f"{section}: expected options by name, got {options!r}")


def _setting(path: str, value: Any) -> Setting:
    return Setting(path, os.fspath(value) if isinstance(value, os.PathLike) else value, ARGUMENT)
