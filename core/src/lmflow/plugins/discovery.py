"""Finding plugins: each loaded in isolation, every call attributed to its distribution, no global state."""

from __future__ import annotations

import difflib
import inspect
import os
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from lmflow import hookspecs
from lmflow.components import Command, Component, Tracker
from lmflow.errors import LmflowError, PluginError
from lmflow.plugins.declared_rules import check_component
from lmflow.plugins.isolation import preserve_process_state
from lmflow.plugins.registry import CORE, BrokenPlugin, DisabledPlugin, Offer, Plugin, Plugins, normal_name
from lmflow.plugins.slots import EVENTS, SLOTS
from lmflow.plugins.stray_output import stdout_as_stderr
from lmflow.versions import INTERFACE_VERSION

GROUP = "lmflow"


DISABLE = "LMFLOW_DISABLE_PLUGINS"


def load_plugins(points: Iterable[EntryPoint] | None = None, disabled: Collection[str] | None = None) -> Plugins:
    """Load every installed plugin but the `disabled` distributions; one that fails is listed and harms no other.

    If None, those that the environment variable LMFLOW_DISABLE_PLUGINS names are disabled. Raises PluginError for an
    attempt to disable the core. What plugins print meanwhile goes to standard error.
    """
    plugins = Plugins()
    left_out = {normal_name(name) for name in (disabled_by_environment() if disabled is None else disabled)}
    if CORE in left_out:
        raise PluginError(f"{CORE} cannot be disabled: nothing works without it")
    with stdout_as_stderr(), preserve_process_state():
        for point in sorted(entry_points(group=GROUP) if points is None else points, key=_identity):
            identity = _identity(point)
            if normal_name(identity[0]) in left_out:
                plugins.disabled.append(DisabledPlugin(*identity))
            else:
                _load(plugins, point)
    return plugins


def disabled_by_environment() -> list[str]:
    """The distributions that LMFLOW_DISABLE_PLUGINS names, between commas."""
    return [name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()]


def _load(plugins: Plugins, point: EntryPoint) -> None:
    distribution, name, version = _identity(point)
    key = f"{distribution}:{name}"
    try:
        module = point.load()
        interface = declared_interface(module)
        check_interface(interface)
        check_arguments(module)
        plugins.manager.register(module, name=key)
        functions = _functions(plugins.manager, module, key)
        offered = list(_collect(functions))
        commands = list(_collect_commands(functions))
    except (Exception, SystemExit) as error:
        if plugins.manager.has_plugin(key):
            plugins.manager.unregister(name=key)
        said = str(error) if isinstance(error, LmflowError) else f"{type(error).__name__}: {error}"
        reason = next(iter(said.strip().splitlines()), type(error).__name__)
        plugins.broken.append(BrokenPlugin(distribution, name, version, reason, traceback.format_exc()))
        return
    plugins.loaded.append(Plugin(distribution, name, version, interface))
    plugins.commands += [(command, distribution) for command in commands]
    for slot, component in offered:
        plugins._offers.setdefault(slot, {}).setdefault(component.name, []).append(Offer(component, distribution))


def _functions(manager: pluggy.PluginManager, module: Any, key: str) -> dict[str, Any]:
    """The hooks the plugin just registered implements, by name. Raises PluginError for a misspelt one.

    Only this plugin's hooks are looked at, so that the time to load plugins grows with their number and no faster.
    """
    functions = {}
    for caller in manager.get_hookcallers(module) or ():
        if not caller.has_spec():
            raise PluginError(f"there is no hook {caller.name}{_nearest_hook(caller.name)}")
        functions[caller.name] = next(i.function for i in caller.get_hookimpls() if i.plugin_name == key)
    return functions


def check_arguments(holder: Any) -> None:
    """Raise PluginError where a hook asks for an argument that it is not given; pluggy's own words name neither."""
    for name, function in inspect.getmembers_static(holder, inspect.isfunction):
        if not hasattr(function, f"{hookspecs.PROJECT}_impl") or not hasattr(hookspecs, name):
            continue
        given = list(inspect.signature(getattr(hookspecs, name)).parameters)
        asked = [each.name for each in inspect.signature(function).parameters.values() if _is_asked_for(each)]
        if unknown := [each for each in asked if each not in (*given, "self")]:
            near = difflib.get_close_matches(unknown[0], given, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it is given {', '.join(given) or 'nothing'}"
            raise PluginError(f"{name} takes {unknown[0]}, which it is not given; {hint}")


def _is_asked_for(parameter: inspect.Parameter) -> bool:
    """Whether pluggy passes the parameter by name: those with a default keep it."""
    return parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty


def _nearest_hook(name: str) -> str:
    hooks = [*(slot.hook for slot in SLOTS.values()), "lmflow_commands", *EVENTS]
    near = difflib.get_close_matches(name, hooks, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _collect(functions: Mapping[str, Any]) -> Iterator[tuple[str, type[Component]]]:
    """What a plugin offers, checked."""
    for slot in SLOTS.values():
        for component in functions[slot.hook]() if slot.hook in functions else ():
            if not (isinstance(component, type) and issubclass(component, slot.base)):
                raise TypeError(f"{slot.hook} offers {component!r}, which is no subclass of {slot.base.__name__}")
            check_component(slot.name, slot.base, component, SLOTS)
            if inspect.isabstract(component):
                missing = ", ".join(sorted(component.__abstractmethods__))
                raise TypeError(f"{slot.hook} offers {component.__name__}, which lacks {missing}")
            if issubclass(component, Tracker):
                _check_events(component)
            yield slot.name, component


def _check_events(tracker: type[Tracker]) -> None:
    """Raise PluginError where a tracker's hook is no event."""
    for name, function in inspect.getmembers_static(tracker, inspect.isfunction):
        if hasattr(function, f"{hookspecs.PROJECT}_impl") and name not in EVENTS:
            raise PluginError(f"there is no event {name}, which {tracker.__name__} listens to{_nearest_hook(name)}")
    check_arguments(tracker)


def _collect_commands(functions: Mapping[str, Any]) -> Iterator[Command]:
    """Commands a plugin offers, checked."""
    for command in functions["lmflow_commands"]() if "lmflow_commands" in functions else ():
        if not isinstance(command, Command):
            raise TypeError(f"lmflow_commands offers {command!r}, which is no Command")
        yield command


def declared_interface(module: Any) -> tuple[int, int] | None:
    """The oldest and newest interface a plugin says it works with (`LMFLOW_INTERFACE = 2` or `(2, 3)`)."""
    declared = getattr(module, "LMFLOW_INTERFACE", None)
    if declared is None:
        return None
    low, high = declared if isinstance(declared, tuple) else (declared, declared)
    return int(low), int(high)


def check_interface(declared: tuple[int, int] | None) -> None:
    """Raise PluginError if a plugin was written for other versions of the interface than this one."""
    low, high = declared or (INTERFACE_VERSION, INTERFACE_VERSION)
    if not low <= INTERFACE_VERSION <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        what = "the plugin" if high < INTERFACE_VERSION else CORE
        raise PluginError(
            f"it was written for interface {wanted}, and this lmflow has {INTERFACE_VERSION}; upgrade {what}"
        )


def _identity(point: EntryPoint) -> tuple[str, str, str]:
    distribution = point.dist
    if distribution is None:  # only entry points made by hand, in tests
        return point.group, point.name, "0"
    return distribution.name, point.name, distribution.version
