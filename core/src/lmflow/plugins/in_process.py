"""Components that no distribution offers, offered beside the installed ones for one call: a plugin made in memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from lmflow.components import Component
from lmflow.errors import PluginError
from lmflow.hookspecs import hookimpl
from lmflow.plugins import GROUP, SLOTS, Plugins, Slot, load_plugins

IN_PROCESS = "in-process"
"""What stands for the distribution of such components, in messages and in `in-process:NAME`."""


class InProcess(EntryPoint):
    """An entry point whose module is at hand: what `importlib.metadata` would find, had the plugin been installed."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(name="components", value=module.__name__, group=IN_PROCESS)
        vars(self)["module"] = module

    def load(self) -> Any:
        """The module itself."""
        return vars(self)["module"]


def load_plugins_with(components: Sequence[type[Component]], points: Sequence[EntryPoint] | None = None) -> Plugins:
    """The installed plugins (or those of `points`), and one more that offers those of `components` that none offers.

    Raises PluginError where one of them cannot be offered, and says why.
    """
    installed = load_plugins(points)
    missing = [each for each in components if each not in installed.classes(slot_of(each).name)]
    if not missing:
        return installed
    module = ModuleType("in_process_components")
    for slot in dict.fromkeys(slot_of(each) for each in missing):
        offered = list(dict.fromkeys(each for each in missing if slot_of(each) is slot))
        setattr(module, slot.hook, hookimpl(lambda offered=offered: offered))
    plugins = load_plugins([*(entry_points(group=GROUP) if points is None else points), InProcess(module)])
    for broken in plugins.broken:
        if broken.distribution == IN_PROCESS:
            raise PluginError(f"components: {broken.reason}")
    return plugins


def slot_of(component: type[Component]) -> Slot:
    """The slot a component class fills. Raises PluginError for a class that derives from none of their classes."""
    for slot in SLOTS.values():
        if issubclass(component, slot.base):
            return slot
    bases = ", ".join(slot.base.__name__ for slot in SLOTS.values())
    raise PluginError(f"components: {component.__name__} derives from none of {bases}")
