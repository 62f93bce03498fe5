"""Which distribution brought each component of a recipe: written with it, and asked when it is read again.

The section `plugins` of a resolved recipe holds `tuner lora: lmflow-lora 0.1.0`. A recipe written by hand needs none,
and a line about a component that the recipe no longer names means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmflow.errors import PluginError
from lmflow.plugins import CORE, SLOTS, Plugins, same_name
from lmflow.plugins.in_process import IN_PROCESS
from lmflow.recipe.settings import SOURCES, Setting, of_section

if TYPE_CHECKING:
    from lmflow.components import Component
    from lmflow.recipe.choice import Choice

WRITTEN = re.compile(r"(?P<distribution>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)( (?P<version>\S+))?")


@dataclass(frozen=True)
class Source:
    """The distribution that a recipe says brought a component, and its version ("" if it does not say)."""

    distribution: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def sources_of(choices: Iterable[Choice | None], plugins: Plugins) -> dict[str, str]:
    """What the section holds: each chosen component that is not the core's own, with distribution and version."""
    found = {}
    for choice in choices:
        home = plugins.distribution_of(choice.component) if choice else ""
        if choice and home not in ("", CORE):
            found[f"{choice.slot} {choice.component.name}"] = str(Source(home, plugins.versions().get(home, "")))
    return found


def check_sources(settings: Mapping[str, Setting], problems: list[str]) -> None:
    """Add what is wrong with the section's form to `problems`."""
    for key, setting in of_section(settings, SOURCES):
        slot, _, name = key.partition(" ")
        if slot not in SLOTS or not name:
            problems.append(f"{setting.place}: expected a slot and a component, as in `tuner lora: lmflow-lora 0.1.0`")
        elif not isinstance(setting.value, str) or not WRITTEN.fullmatch(setting.value):
            problems.append(f"{setting.place}: expected a distribution and its version, got {setting.value!r}")


def source_for(slot: str, name: str, settings: Mapping[str, Setting]) -> Source | None:
    """What the recipe says of a component; None if nothing."""
    setting = settings.get(f"{SOURCES}.{slot} {name}")
    written = WRITTEN.fullmatch(setting.value) if setting and isinstance(setting.value, str) else None
    return Source(written["distribution"], written["version"] or "") if written else None


def find_recorded(
    plugins: Plugins, slot: str, reference: str, settings: Mapping[str, Setting]
) -> type[Component] | None:
    """The component that the recipe means by `reference`, where it says which distribution brought it; else None.

    Raises PluginError where that distribution does not bring it now, though another may.
    """
    stated, _, name = reference.rpartition(":")
    source = source_for(slot, reference, settings)
    if source is None:
        source = source_for(slot, name, settings)
        if source is None or not same_name(stated, source.distribution):
            return None
    else:
        name = reference
    component = plugins.lookup(slot, f"{source.distribution}:{name}")
    if component is None:
        raise PluginError(explain_gone(plugins, slot, name, source))
    return component


def explain_gone(plugins: Plugins, slot: str, name: str, source: Source) -> str:
    """What to say of a component that its distribution does not bring now."""
    home = source.distribution
    state = f"which is not installed; install it with: lmflow plugins install {home}"
    if home == IN_PROCESS:
        state = "the Python program that ran it, and is found nowhere else; give it to lmflow.run again, as components"
    for broken in plugins.broken:
        if same_name(broken.distribution, home):
            state = f"which is broken ({broken.reason}); see lmflow plugins show {home}"
    if any(same_name(each.distribution, home) for each in plugins.disabled):
        state = "which is disabled"
    for plugin in plugins.loaded:
        if same_name(plugin.distribution, home):
            state = f"and {home} {plugin.version}, which is installed, has none"
    text = f"{slot} {name} came from {state if home == IN_PROCESS else f'{source}, {state}'}"
    option = "trackers" if slot == "tracker" else slot
    others = [f"--{option} {offer.distribution}:{name}" for offer in plugins.offers(slot).get(name, ())]
    return f"{text}. Others of that name: {', '.join(others)}" if others else text
