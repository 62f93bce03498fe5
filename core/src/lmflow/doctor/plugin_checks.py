"""Are the plugins sound? Broken, colliding, disabled and idle ones, and optional packages that components lack."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import Distribution
from typing import Any

from lmflow.doctor.finding import Finding
from lmflow.doctor.installer import pip
from lmflow.plugins import CORE, DISABLE, EVENTS, SLOTS, BrokenPlugin, Plugins, normal_name, same_name

NAME = "plugins"


def check_plugins(
    plugins: Plugins,
    distributions: Mapping[str, Distribution],
    commands: Collection[str] = (),
    disabling: Collection[str] = (),
) -> Iterator[Finding]:
    """Everything about plugins.

    `distributions` are the installed ones by normalised name, `commands` the core's own, `disabling` the names that
    LMFLOW_DISABLE_PLUGINS holds.
    """
    faults = [
        *(_judge_broken(broken, distributions) for broken in plugins.broken),
        *_conflicts(plugins),
        *_command_conflicts(plugins, commands),
        *_disabled(plugins, disabling),
        *_idle(plugins),
        *_unmarked(plugins),
    ]
    yield from faults
    loaded = len({plugin.distribution for plugin in plugins.loaded})
    silent = [each.distribution for each in plugins.loaded if each.interface is None and each.distribution != CORE]
    note = f" No interface version is declared by {', '.join(silent)}." if silent else ""
    if not any(finding.status == "error" for finding in faults):
        yield Finding(NAME, "ok", f"{_count(loaded, 'distribution')} with plugins, no name offered twice.{note}")


def check_optional_parts(plugins: Plugins) -> Iterator[Finding]:
    """Packages that an offered component cannot do without and that are not installed."""
    found = False
    for slot in SLOTS:
        for name, offers in plugins.offers(slot).items():
            for offer in offers:
                for each in offer.component.missing():
                    found = True
                    text = f"{slot} {name} needs {each.module}, which is not installed: a run that names it is refused."
                    yield Finding("optional parts", "warning", text, pip(f"install {each.install}"))
    if not found:
        yield Finding("optional parts", "ok", "Every installed component has the packages it needs.")


def _judge_broken(broken: BrokenPlugin, distributions: Mapping[str, Distribution]) -> Finding:
    who = broken.distribution
    text = f"{who} {broken.version} is broken and left out: {broken.reason.rstrip('.')}"
    text += f"{'' if text.endswith('?') else '.'} A run that names a part of it stops before any work."
    show = f"lmflow plugins show {who}"
    missing = re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", broken.reason)
    if missing:
        module = missing[1].partition(".")[0]
        needed = _requirement_for(module, distributions.get(normal_name(who)))
        note = "" if needed else f" It does not declare {module} as a requirement, which its author should know."
        return Finding(NAME, "error", text + note, f"{pip(f'install {shlex.quote(needed or module)}')}\n{show}")
    old = CORE if broken.reason.endswith(CORE) else who  # a plugin written for a later interface says so
    return Finding(NAME, "error", text, f"{show}\n{pip(f'install --upgrade {old}')}")


def _requirement_for(module: str, distribution: Distribution | None) -> str | None:
    """The requirement that a distribution declares for a module of the same name, as pip takes it."""
    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in (distribution.requires if distribution else None) or ()]
    return next((f"{each.name}{each.specifier}" for each in declared if same_name(each.name, module)), None)


def _conflicts(plugins: Plugins) -> Iterator[Finding]:
    """Names that several distributions offer; one of the core's own stops runs that name nothing."""
    contested = [
        (slot, name, [offer.distribution for offer in offers])
        for slot in SLOTS
        for name, offers in plugins.offers(slot).items()
        if len(offers) > 1
    ]
    for (slot, name, who), text in zip(contested, plugins.conflicts(), strict=True):
        what, _, choices = text.partition("; say which: ")
        why = f"A recipe that says {slot} {name} is refused."
        if CORE in who:
            why = f"{slot} {name} is the core's own, so even a recipe that leaves it at its default may be refused."
        other = next(each for each in reversed(who) if each != CORE)
        options = choices.split(" or ")
        chosen = next((option for option in options if f" {CORE}:" in option), options[0])
        remedy = f"lmflow {'eval' if slot == 'evaluator' else 'run'} {chosen}\n{pip(f'uninstall {other}')}"
        yield Finding(NAME, "error", f"{what[0].upper()}{what[1:]}. {why}", remedy)


def _command_conflicts(plugins: Plugins, commands: Collection[str]) -> Iterator[Finding]:
    owners: dict[str, list[str]] = {}
    for command, distribution in plugins.commands:
        owners.setdefault(command.name, []).append(distribution)
    for name, who in owners.items():
        if name in commands:
            text = f"{' and '.join(who)} offers a command {name}, which is never called: lmflow {name} is the core's."
            yield Finding(NAME, "warning", text, f"lmflow plugins show {who[0]}")
        elif len(who) > 1:
            text = f"Command {name} is offered by {' and '.join(who)}; lmflow {name} is refused."
            yield Finding(NAME, "error", text, pip(f"uninstall {who[-1]}"))


def _disabled(plugins: Plugins, disabling: Collection[str]) -> Iterator[Finding]:
    if plugins.disabled:
        names = ", ".join(dict.fromkeys(each.distribution for each in plugins.disabled))
        text = f"{names} is left out by {DISABLE} (or --disable-plugin): nothing it offers is found."
        yield Finding(NAME, "warning", text, f"unset {DISABLE}")
    for name in disabling:
        if not any(same_name(name, each.distribution) for each in plugins.disabled):
            text = f"{DISABLE} names {name}, and no such plugin is installed: it disables nothing."
            yield Finding(NAME, "warning", text, f"lmflow plugins\nunset {DISABLE}")


def _idle(plugins: Plugins) -> Iterator[Finding]:
    """Distributions that loaded, and neither offer nor listen."""
    busy = {offer.distribution for slot in SLOTS for offers in plugins.offers(slot).values() for offer in offers}
    busy |= {distribution for _, distribution in plugins.commands}
    for plugin in plugins.loaded:
        if plugin.distribution in busy or set(_hooks(plugins, plugin.key)) & set(EVENTS):
            continue
        if list(_forgotten(plugins, plugin.key)):
            continue  # which says why
        text = f"{plugin.distribution} {plugin.version} loads, but offers nothing and listens to nothing."
        yield Finding(NAME, "warning", text, f"lmflow plugins show {plugin.distribution}\n{_upgrade(plugin)}")


def _unmarked(plugins: Plugins) -> Iterator[Finding]:
    """Functions that look like hooks and are none, because nobody marked them."""
    for plugin in plugins.loaded:
        for function in _forgotten(plugins, plugin.key):
            who = f"{plugin.distribution} {plugin.version}"
            text = f"{who} has a function {function} without @hookimpl, so what it offers is not seen."
            yield Finding(NAME, "warning", text, _upgrade(plugin))


def _forgotten(plugins: Plugins, key: str) -> Iterator[str]:
    module = plugins.manager.get_plugin(key)
    hooks = _hooks(plugins, key)
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("lmflow_") and name not in hooks and function.__module__ == getattr(module, "__name__", ""):
            yield name


def _hooks(plugins: Plugins, key: str) -> list[str]:
    """Names of the hooks a loaded plugin implements."""
    module = plugins.manager.get_plugin(key)
    return [caller.name for caller in plugins.manager.get_hookcallers(module) or ()]


def _upgrade(plugin: Any) -> str:
    return pip(f"install --upgrade {plugin.distribution}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
