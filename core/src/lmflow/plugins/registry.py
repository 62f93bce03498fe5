"""The plugins of one command: what they offer, and what to say where a name is unknown or offered twice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pluggy

from lmflow import hookspecs
from lmflow.components import Command, Component, Tracker
from lmflow.errors import PluginError
from lmflow.plugins.known import distribution_for
from lmflow.plugins.slots import EVENTS, SLOTS
from lmflow.plugins.user_code import fenced

CORE = "lmflow-core"


@dataclass(frozen=True)
class Plugin:
    """A distribution's entry point that loaded, and the interface it declares (None: it does not say)."""

    distribution: str
    entry_point: str
    version: str
    interface: tuple[int, int] | None = None

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
class DisabledPlugin:
    """A distribution's entry point that was not loaded because the user said so."""

    distribution: str
    entry_point: str
    version: str


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
    disabled: list[DisabledPlugin] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: _new_manager())
    _offers: dict[str, dict[str, list[Offer]]] = field(default_factory=dict)
    commands: list[tuple[Command, str]] = field(default_factory=list)
    """Commands of plugins, each with the distribution that offers it."""
    _silenced: set[str] = field(default_factory=set)

    def offers(self, slot: str) -> Mapping[str, Sequence[Offer]]:
        """The slot's components by name; a name may be offered more than once."""
        return self._offers.setdefault(slot, {})

    def classes(self, slot: str) -> list[Any]:
        """The slot's components, names offered once only."""
        return [offers[0].component for offers in self.offers(slot).values() if len(offers) == 1]

    def versions(self) -> Mapping[str, str]:
        """Version of each distribution that holds a plugin."""
        return {plugin.distribution: plugin.version for plugin in self.loaded}

    def distributions(self) -> list[str]:
        """Every distribution with a plugin, whether it works or not."""
        every: list[Plugin | BrokenPlugin | DisabledPlugin] = [*self.loaded, *self.broken, *self.disabled]
        return list(dict.fromkeys(each.distribution for each in every))

    def conflicts(self) -> list[str]:
        """What to say of every name that several distributions offer."""
        return [
            _explain_conflict(slot, name, offers)
            for slot in SLOTS
            for name, offers in self.offers(slot).items()
            if len(offers) > 1
        ]

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
            offers = [offer for offer in offers if same_name(offer.distribution, distribution)]
        if len(offers) > 1:
            raise PluginError(_explain_conflict(slot, name, offers))
        return offers[0].component if offers else None

    def find_command(self, name: str) -> Command | None:
        """The plugins' command of that name, None if there is none. Raises PluginError if several offer it."""
        found = [(command, distribution) for command, distribution in self.commands if command.name == name]
        if len(found) > 1:
            who = " and ".join(distribution for _, distribution in found)
            raise PluginError(
                f"command {name} is offered by {who}; leave one of them out with --disable-plugin DISTRIBUTION"
            )
        return found[0][0] if found else None

    @contextmanager
    def with_trackers(self, trackers: Iterable[Tracker]) -> Iterator[None]:
        """Within the context events reach `trackers` too."""
        with self.with_listeners({f"tracker {tracker.name}": tracker for tracker in trackers}):
            yield

    @contextmanager
    def with_listeners(self, listeners: Mapping[str, object]) -> Iterator[None]:
        """Within the context events reach these modules and objects too, each known by a name."""
        names = [self.manager.register(listener, name=name) for name, listener in listeners.items()]
        try:
            yield
        finally:
            for name in names:
                self.manager.unregister(name=name)
                self._silenced.discard(name or "")

    def heard_by(self, distribution: str) -> list[str]:
        """The events that a distribution's plugins listen to in every run, beside its trackers."""
        keys = {f"{each.distribution}:{each.entry_point}" for each in self.loaded if each.distribution == distribution}
        return [
            event
            for event in EVENTS
            if any(each.plugin_name in keys for each in getattr(self.manager.hook, event).get_hookimpls())
        ]

    def emit(self, event: str, **values: Any) -> list[str]:
        """Tell every plugin of an event. One that raises is told no more; returns what to say of those, if any.

        What plugins print goes to standard error, mappings reach each as a copy that cannot be written to, and random
        numbers, torch's modes and the working directory are afterwards as they were.
        """
        failures = []
        for implementation in getattr(self.manager.hook, event).get_hookimpls():
            name = implementation.plugin_name
            if name in self._silenced:
                continue
            try:
                with fenced():
                    implementation.function(*(_read_only(values[argument]) for argument in implementation.argnames))
            except Exception as error:
                self._silenced.add(name)
                who = name if name.startswith("tracker ") else f"plugin {name.partition(':')[0]}"
                failures.append(f"{who}: {event} raised {type(error).__name__}: {error}; the run goes on without it")
        return failures

    def distribution_of(self, component: type[Any]) -> str:
        """The distribution that offers the component; "" for one that none does."""
        every = (offer for slot in SLOTS for offers in self.offers(slot).values() for offer in offers)
        return next((offer.distribution for offer in every if offer.component is component), "")

    def describe_owner(self, slot: str, component: type[Component]) -> str:
        """A component as messages about its faults name it: slot, name, distribution and version."""
        home = self.distribution_of(component)
        brought = f" ({home} {self.versions().get(home, '')})" if home else ""
        return f"{slot} {component.name}{brought}"

    def why_missing(self, reference: str = "", home: str | None = None) -> str:
        """What to add when `reference` is not found: plugins that are broken or disabled may have brought it.

        Of many broken ones those are told whole that belong to `reference` or are its known `home`; the rest are named.
        """
        wanted = normal_name(reference.rpartition(":")[0] or reference)
        near = [
            each
            for each in self.broken
            if len(self.broken) == 1
            or (home and same_name(each.distribution, home))
            or (wanted and wanted in normal_name(each.distribution))
        ]
        text = "".join(
            f" Plugin {broken.distribution} is broken ({broken.reason}); see lmflow plugins show {broken.distribution}."
            for broken in near
        )
        if self.broken and not near:
            text = f" {count_broken(self.broken)} and may bring it; see lmflow plugins."
        return text + "".join(f" Plugin {each.distribution} is disabled." for each in self.disabled)

    def _explain_unknown(self, slot: str, reference: str) -> str:
        names = sorted(self.offers(slot))
        near = difflib.get_close_matches(reference, names, n=1)
        text = f"no {slot} is called {reference}"
        text += f"; did you mean {near[0]}?" if near else "."
        home = distribution_for(slot, reference)
        text += f" Installed: {', '.join(names) or 'none'}.{self.why_missing(reference, home)}"
        present = home is None or home in self.distributions()
        return text if present else f"{text} Install it with: lmflow plugins install {home}"


def count_broken(broken: Sequence[BrokenPlugin], most: int = 5) -> str:
    """How many plugins are broken, and the names of the first of them."""
    names = list(dict.fromkeys(each.distribution for each in broken))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    are = "plugin is" if len(names) == 1 else "plugins are"
    return f"{len(names)} {are} broken ({', '.join(names[:most])}{more})"


def same_name(one: str, other: str) -> bool:
    """Whether two spellings name one distribution."""
    return normal_name(one) == normal_name(other)


def normal_name(distribution: str) -> str:
    """A distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _explain_conflict(slot: str, name: str, offers: Sequence[Offer]) -> str:
    option = "trackers" if slot == "tracker" else slot
    names = " or ".join(f"--{option} {offer.distribution}:{name}" for offer in offers)
    who = " and ".join(offer.distribution for offer in offers)
    return f"{slot} {name} is offered by {who}; say which: {names}"


def _read_only(value: Any) -> Any:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager
