"""Finding plugins: each loaded in isolation, every call attributed to its distribution, no global state."""

from __future__ import annotations

import difflib
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from lmflow import INTERFACE_VERSION, components, hookspecs
from lmflow.components import Command, Component
from lmflow.errors import PluginError

GROUP = "lmflow"


class PluginWarning(UserWarning):
    """A plugin misbehaved in an event, and the run goes on without it."""


@dataclass(frozen=True)
class Slot:
    """A kind of part: the hook that offers its components, and the class they derive from."""

    name: str
    hook: str
    base: type[Component]
    in_recipe: bool = True
    """Whether a recipe of a run has a part for it; evaluators belong to `lmflow eval` alone."""


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot("model", "lmflow_models", components.Model),
        Slot("context", "lmflow_contexts", components.Context),
        Slot("data", "lmflow_data_formats", components.DataFormat),
        Slot("tuner", "lmflow_tuners", components.Tuner),
        Slot("aligner", "lmflow_aligners", components.Aligner),
        Slot("inferencer", "lmflow_inferencers", components.Inferencer),
        Slot("reward", "lmflow_rewards", components.Reward),
        Slot("evaluator", "lmflow_evaluators", components.Evaluator, in_recipe=False),
    )
}
"""Every slot, in the order of a recipe. A new slot is one row here and one hook."""

RECIPE_SLOTS: Sequence[str] = tuple(slot.name for slot in SLOTS.values() if slot.in_recipe)


@dataclass(frozen=True)
class Plugin:
    """A distribution's entry point that loaded."""

    distribution: str
    entry_point: str
    version: str

    @property
    def key(self) -> str:
        """`distribution:entry point`, the name it is registered under."""
        return f"{self.distribution}:{self.entry_point}"


@dataclass(frozen=True)
class BrokenPlugin:
    """A distribution's entry point that cannot be used: why in a line, and the whole traceback."""

    distribution: str
    entry_point: str
    version: str
    reason: str
    traceback: str


@dataclass(frozen=True)
class Offer:
    """A component, and the distribution that offers it."""

    component: type[Component]
    distribution: str


@dataclass
class Plugins:
    """The plugins of one command. Made once by `load_plugins` and passed down; tests make their own."""

    loaded: list[Plugin] = field(default_factory=list)
    broken: list[BrokenPlugin] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: _new_manager())
    _offers: dict[str, dict[str, list[Offer]]] = field(default_factory=dict)
    commands: list[tuple[Command, str]] = field(default_factory=list)
    """Commands of plugins, each with the distribution that offers it."""
    _silenced: set[tuple[str, str]] = field(default_factory=set)

    def offers(self, slot: str) -> Mapping[str, Sequence[Offer]]:
        """The slot's components by name; a name may be offered more than once."""
        return self._offers.setdefault(slot, {})

    def classes(self, slot: str) -> list[Any]:
        """The slot's components, names offered once only."""
        return [offers[0].component for offers in self.offers(slot).values() if len(offers) == 1]

    def versions(self) -> Mapping[str, str]:
        """Version of each distribution that holds a plugin."""
        return {plugin.distribution: plugin.version for plugin in self.loaded}

    def find(self, slot: str, reference: str) -> type[Component]:
        """The component called `reference` ("lora", or "distribution:lora").

        Raises PluginError when there is none (with the nearest name and what is installed) or more than one.
        """
        found = self.lookup(slot, reference)
        if found is None:
            raise PluginError(self._explain_unknown(slot, reference))
        return found

    def lookup(self, slot: str, reference: str) -> type[Component] | None:
        """Like `find`, but None when no component has the name. Raises PluginError for an ambiguous one."""
        distribution, _, name = reference.rpartition(":")
        offers = self.offers(slot).get(name if distribution else reference, ())
        if distribution:
            offers = [offer for offer in offers if offer.distribution == distribution]
        if len(offers) > 1:
            names = " or ".join(f"--{slot} {offer.distribution}:{reference}" for offer in offers)
            who = " and ".join(offer.distribution for offer in offers)
            raise PluginError(f"{slot} {reference} is offered by {who}; say which: {names}")
        return offers[0].component if offers else None

    def find_command(self, name: str) -> Command | None:
        """The plugins' command of that name, None if there is none. Raises PluginError if several offer it."""
        found = [(command, distribution) for command, distribution in self.commands if command.name == name]
        if len(found) > 1:
            who = " and ".join(distribution for _, distribution in found)
            raise PluginError(f"command {name} is offered by {who}; uninstall one of them")
        return found[0][0] if found else None

    def emit(self, event: str, **values: Any) -> None:
        """Tell every plugin of an event. One that raises is reported once, by name, and not told again."""
        for implementation in getattr(self.manager.hook, event).get_hookimpls():
            key = (implementation.plugin_name, event)
            if key in self._silenced:
                continue
            try:
                implementation.function(*(values[name] for name in implementation.argnames))
            except Exception as error:
                self._silenced.add(key)
                distribution = implementation.plugin_name.partition(":")[0]
                text = f"plugin {distribution}: {event} raised {type(error).__name__}: {error}; it is not called again"
                warnings.warn(text, PluginWarning, stacklevel=2)

    def _explain_unknown(self, slot: str, reference: str) -> str:
        names = sorted(self.offers(slot))
        near = difflib.get_close_matches(reference, names, n=1)
        text = f"no {slot} is called {reference}"
        text += f"; did you mean {near[0]}?" if near else ""
        text += f" Installed: {', '.join(names) or 'none'}."
        for broken in self.broken:
            text += f" Plugin {broken.distribution} is broken ({broken.reason}); see `lmflow plugins`."
        if not near and reference.isidentifier():
            text += f" If a plugin brings it, install that first (`pip install lmflow-{reference}`, for ours)."
        return text


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Load every installed plugin; one that fails is listed as broken and harms no other."""
    plugins = Plugins()
    for point in sorted(entry_points(group=GROUP) if points is None else points, key=_identity):
        _load(plugins, point)
    return plugins


def _load(plugins: Plugins, point: EntryPoint) -> None:
    distribution, name, version = _identity(point)
    key = f"{distribution}:{name}"
    try:
        module = point.load()
        check_interface(module)
        plugins.manager.register(module, name=key)
        plugins.manager.check_pending()
        offered = list(_collect(plugins.manager, key))
        commands = list(_collect_commands(plugins.manager, key))
    except (Exception, SystemExit) as error:
        if plugins.manager.has_plugin(key):
            plugins.manager.unregister(name=key)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        plugins.broken.append(BrokenPlugin(distribution, name, version, reason, traceback.format_exc()))
        return
    plugins.loaded.append(Plugin(distribution, name, version))
    plugins.commands += [(command, distribution) for command in commands]
    for slot, component in offered:
        plugins._offers.setdefault(slot, {}).setdefault(component.name, []).append(Offer(component, distribution))


def _collect(manager: pluggy.PluginManager, key: str) -> Iterator[tuple[str, type[Component]]]:
    """What the plugin just registered offers, checked."""
    for slot in SLOTS.values():
        for implementation in getattr(manager.hook, slot.hook).get_hookimpls():
            if implementation.plugin_name != key:
                continue
            for component in implementation.function():
                if not (isinstance(component, type) and issubclass(component, slot.base)):
                    raise TypeError(f"{slot.hook} offers {component!r}, which is no subclass of {slot.base.__name__}")
                if not isinstance(getattr(component, "name", None), str):
                    raise TypeError(f"{slot.hook} offers {component.__name__}, which has no name")
                yield slot.name, component


def _collect_commands(manager: pluggy.PluginManager, key: str) -> Iterator[Command]:
    """Commands the plugin just registered offers, checked."""
    for implementation in manager.hook.lmflow_commands.get_hookimpls():
        if implementation.plugin_name == key:
            commands: Any = implementation.function()
            for command in commands:
                if not isinstance(command, Command):
                    raise TypeError(f"lmflow_commands offers {command!r}, which is no Command")
                yield command


def check_interface(module: Any) -> None:
    """Raise PluginError if the plugin says it was written for other versions of the interface than this one."""
    declared = getattr(module, "LMFLOW_INTERFACE", INTERFACE_VERSION)
    low, high = declared if isinstance(declared, tuple) else (declared, declared)
    if not low <= INTERFACE_VERSION <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise PluginError(f"it was written for interface {wanted}, and this lmflow has {INTERFACE_VERSION}")


def _identity(point: EntryPoint) -> tuple[str, str, str]:
    distribution = point.dist
    if distribution is None:  # only entry points made by hand, in tests
        return point.group, point.name, "0"
    return distribution.name, point.name, distribution.version


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager
