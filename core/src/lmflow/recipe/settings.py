"""Settings: values somebody wrote for a command, in a file or as options, before any component has checked them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from lmflow.plugins import RECIPE_SLOTS
from lmflow.recipe.sections.data import DataOptions
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.sections.training import TrainingOptions

DATA = "data"
"""The section of a recipe that holds plain options, and beside them a component (the format) with its own."""
TRAINING = "training"
LAUNCH = "launch"
PLAIN: Mapping[str, type[BaseModel]] = {DATA: DataOptions, TRAINING: TrainingOptions, LAUNCH: LaunchOptions}
"""The sections of a recipe with options that belong to no component."""
OPTIONS_ONLY = tuple(section for section in PLAIN if section not in RECIPE_SLOTS)
"""Those of them that no component has a part in: a name alone cannot be what is meant."""
TRACKERS = "trackers"
"""The section of a recipe that names any number of components, each with options of its own."""
SOURCES = "plugins"
"""The section of a resolved recipe that says which distribution brought each component."""
STAGES = "stages"
"""The section of a recipe that holds several, each of which is carried out with what those before it gave."""


@dataclass(frozen=True)
class Origin:
    """Where a value came from: `kind` is default, file, option, argument or plugin; `place`, a file:line or option."""

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

    @property
    def place(self) -> str:
        """What to call it in a message: the option, or file, line and path."""
        if self.origin.kind == "option":
            return self.origin.place
        return f"{self.origin.place}: {self.path}" if self.origin.place else self.path


@dataclass(frozen=True)
class Scope:
    """What a command's options can set: components in slots, and the fields of plain sections.

    A section may have the name of a slot (`data`): its fields are then options beside those of the component.
    `preferred` are defaults, by dotted path, that the command puts before those of the classes; `aliases` are the
    command's short options and the dotted path each sets ("--device": "compute.device"); `hidden` are dotted paths that
    mean nothing to the command and are refused; `trackers` says that any number of trackers can be chosen.
    """

    command: str
    slots: Sequence[str]
    sections: Mapping[str, type[BaseModel]]
    preferred: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[str] = ()
    trackers: bool = False

    @property
    def names(self) -> Sequence[str]:
        """Slots and sections alike."""
        return tuple(dict.fromkeys((*self.slots, *self.sections, *([TRACKERS] if self.trackers else []))))

    def preferred_in(self, section: str) -> dict[str, Any]:
        """The command's own defaults of a section, by field."""
        parts = ((path.partition("."), value) for path, value in self.preferred.items())
        return {key: value for (of, _, key), value in parts if of == section}


RUN_SCOPE = Scope("run", RECIPE_SLOTS, PLAIN, trackers=True)


def of_section(settings: Mapping[str, Setting], section: str) -> Iterator[tuple[str, Setting]]:
    """The settings of a section, each with the rest of its path."""
    start = f"{section}."
    return ((path.removeprefix(start), setting) for path, setting in settings.items() if path.startswith(start))
