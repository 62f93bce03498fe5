"""`lmflow plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from lmflow.errors import PluginError
from lmflow.plugins import SLOTS, Plugins, load_plugins

group = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@group.callback()
def list_plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List distributions and what each offers."""
    if context.invoked_subcommand:
        return
    plugins = load_plugins()
    if as_json:
        import json

        sys.stdout.write(json.dumps(as_dict(plugins), indent=2) + "\n")
        return
    for distribution in dict.fromkeys(plugin.distribution for plugin in plugins.loaded):
        sys.stdout.write(f"{distribution} {plugins.versions()[distribution]}\n")
        for slot, name, text in offered(plugins, distribution):
            sys.stdout.write(f"  {slot:<11}{name:<14}{text}\n")
    for broken in plugins.broken:
        sys.stdout.write(f"{broken.distribution} {broken.version}: broken: {broken.reason}\n")
        sys.stdout.write("".join(f"    {line}\n" for line in broken.traceback.strip().splitlines()[-6:]))


@group.command("show")
def show(name: Annotated[str, typer.Argument(help="A distribution, or a component.")]) -> None:
    """One distribution's components with their options, or a broken plugin's whole traceback."""
    plugins = load_plugins()
    for broken in plugins.broken:
        if broken.distribution == name:
            sys.stdout.write(broken.traceback)
            return
    chosen = [
        (slot, offer)
        for slot in SLOTS
        for offers in plugins.offers(slot).values()
        for offer in offers
        if name in (offer.component.name, offer.distribution, f"{offer.distribution}:{offer.component.name}")
    ]
    commands = [(command, of) for command, of in plugins.commands if name in (command.name, of)]
    if not chosen and not commands:
        known = ", ".join(dict.fromkeys(plugin.distribution for plugin in plugins.loaded))
        raise PluginError(f"neither a plugin nor a component is called {name}; installed: {known}")
    for slot, offer in chosen:
        sys.stdout.write(f"{slot} {offer.component.name} ({offer.distribution}): {first_line(offer.component)}\n")
        for key, info in offer.component.model_fields.items():
            default = "required" if info.is_required() else f"default {info.default}"
            sys.stdout.write(f"  --{slot}.{key}  {info.description} [{default}]\n")
    for command, distribution in commands:
        sys.stdout.write(f"command {command.name} ({distribution}): {command.help} See lmflow {command.name} --help.\n")


def offered(plugins: Plugins, distribution: str) -> list[tuple[str, str, str]]:
    """(slot, name, first line of help) of everything a distribution offers; the slot of a command is `command`."""
    commands = [("command", command.name, command.help) for command, of in plugins.commands if of == distribution]
    return [
        (slot, name, first_line(offer.component))
        for slot in SLOTS
        for name, offers in plugins.offers(slot).items()
        for offer in offers
        if offer.distribution == distribution
    ] + commands


def first_line(component: type[Any]) -> str:
    """A component's help."""
    return (component.__doc__ or "").strip().splitlines()[0]


def as_dict(plugins: Plugins) -> dict[str, Any]:
    """Everything the list shows, as plain values."""
    return {
        "plugins": [
            {
                "distribution": plugin.distribution,
                "version": plugin.version,
                "components": [
                    {"slot": slot, "name": name, "help": text}
                    for slot, name, text in offered(plugins, plugin.distribution)
                ],
            }
            for plugin in plugins.loaded
        ],
        "broken": [
            {"distribution": broken.distribution, "version": broken.version, "reason": broken.reason}
            for broken in plugins.broken
        ],
    }
