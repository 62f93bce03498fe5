"""Plugins: found through entry points, each in isolation, chosen by name, without global state."""

from lmflow.plugins.discovery import DISABLE, GROUP, check_interface, disabled_by_environment, load_plugins
from lmflow.plugins.registry import (
    CORE,
    BrokenPlugin,
    DisabledPlugin,
    Offer,
    Plugin,
    Plugins,
    count_broken,
    normal_name,
    same_name,
)
from lmflow.plugins.slots import EVENTS, RECIPE_SLOTS, SLOTS, Slot

__all__ = [
    "CORE",
    "DISABLE",
    "EVENTS",
    "GROUP",
    "RECIPE_SLOTS",
    "SLOTS",
    "BrokenPlugin",
    "DisabledPlugin",
    "Offer",
    "Plugin",
    "Plugins",
    "Slot",
    "check_interface",
    "count_broken",
    "disabled_by_environment",
    "load_plugins",
    "normal_name",
    "same_name",
]
