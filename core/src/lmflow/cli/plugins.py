"""`lmflow plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import to_jsonable_python as plain

from lmflow.cli.output import print_error
from lmflow.components import Component
from lmflow.errors import PluginError
from lmflow.plugins import SLOTS, Offer, Plugin, Plugins, load_plugins, same_name
from lmflow.recipe.values import option_text, option_type
from lmflow.terminal import write_out
from lmflow.versions import INTERFACE_VERSION

if TYPE_CHECKING:
    from lmflow.plugins.installation import Installed

group = typer.Typer(invoke_without_command=True, pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MULTIPLE = {"tracker": "trackers"}
"""Slots whose option is not their name."""


@group.callback()
def list_plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List distributions and what each offers."""
    if context.invoked_subcommand:
        return
    plugins = load_plugins()
    if as_json:
        from lmflow.run_files import to_json

        write_out(to_json(as_dict(plugins), indent=2) + "\n")
        return
    write_out("".join(f"{line}\n" for line in listing(plugins)))


@group.command("show")
def show(name: Annotated[str, typer.Argument(help="A distribution, or a component.")]) -> None:
    """One distribution's components with their options, or a broken plugin's whole traceback."""
    write_out("".join(f"{line}\n" for line in describe(load_plugins(), name)))


@group.command("install")
def install_plugins(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Distributions, directories or wheels; behind --, options of pip."),
    ],
    as_json: AsJson = False,
) -> None:
    """Install plugins with this Python's pip, or with uv, and say what they bring."""
    from lmflow.plugins.installation import install

    targets = list(takewhile(lambda word: not word.startswith("-"), names))
    if not targets:
        raise PluginError("lmflow plugins install: name a distribution, a directory or a wheel before --")
    show_installed(install(targets, names[len(targets) :]), as_json=as_json)


@group.command("uninstall")
def uninstall_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A distribution with plugins.")],
    options: Annotated[list[str] | None, typer.Argument(metavar="OPTION", help="Behind --, options of pip.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a plugin's distribution."""
    from lmflow.plugins.installation import uninstall

    show_installed(uninstall(name, options or []), as_json=as_json)


def show_installed(found: Installed, *, as_json: bool) -> None:
    """Print what an installation came to, and exit as it did."""
    if as_json:
        from lmflow.run_files import to_json

        said = {"command": found.command, "exit_code": found.code, "plugins": found.plugins, "problems": found.problems}
        write_out(to_json(said, indent=2) + "\n")
    else:
        write_out("".join(f"{line}\n" for line in installed_lines(found.plugins)))
        for problem in found.problems:
            print_error(problem)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def installed_lines(plugins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each installed distribution with what it brings, and what to type next."""
    for plugin in plugins:
        if plugin["status"] == "broken":
            continue  # which is an error, and said as one
        disabled = ", disabled by LMFLOW_DISABLE_PLUGINS" if plugin["status"] == "disabled" else ""
        yield f"{plugin['distribution']} {plugin['version']}{disabled}"
        for each in plugin["components"]:
            yield f"  {each['slot']:<11}{each['name']:<21} {each['help']}"
            yield from (f"  {'':<11}needs: {command}" for command in each["missing"])
        if plugin["components"]:
            yield f"  lmflow plugins show {plugin['distribution']} lists the options"


def listing(plugins: Plugins) -> Iterator[str]:
    """Each distribution with what it offers, then those that are disabled or broken, and names offered twice."""
    for distribution in dict.fromkeys(plugin.distribution for plugin in plugins.loaded):
        yield f"{distribution} {plugins.versions()[distribution]}"
        for slot, name, text, _ in offered(plugins, distribution):
            yield f"  {slot:<11}{name:<21} {text}"
        if events := plugins.heard_by(distribution):
            yield f"  {'listens to':<11}{', '.join(events)}"
    for disabled in plugins.disabled:
        yield f"{disabled.distribution} {disabled.version}: disabled"
    for broken in plugins.broken:
        yield f"{broken.distribution} {broken.version}: broken: {broken.reason}"
        yield f"  lmflow plugins show {broken.distribution} prints the traceback"
    for conflict in plugins.conflicts():
        yield f"conflict: {conflict}"


def describe(plugins: Plugins, name: str) -> Iterator[str]:
    """Everything about a distribution or component. Raises PluginError when there is none of that name."""
    found = False
    for broken in plugins.broken:
        if same_name(broken.distribution, name):
            found = True
            yield f"{broken.distribution} {broken.version}: broken: {broken.reason}"
            yield from broken.traceback.rstrip().splitlines()
    for disabled in plugins.disabled:
        if same_name(disabled.distribution, name):
            found = True
            yield f"{disabled.distribution} {disabled.version}: disabled, by LMFLOW_DISABLE_PLUGINS or --disable-plugin"
    for plugin in plugins.loaded:
        if same_name(plugin.distribution, name):
            found = True
            yield f"{plugin.distribution} {plugin.version}, interface {interface(plugin)}"
            if events := plugins.heard_by(plugin.distribution):
                yield f"listens to {', '.join(events)}, in every run"
    for slot, offer in every_offer(plugins):
        component = offer.component
        if matches(name, component.name, offer.distribution):
            found = True
            yield from describe_component(slot, component, offer.distribution)
    for command, distribution in plugins.commands:
        if matches(name, command.name, distribution):
            found = True
            yield f"command {command.name} ({distribution}): {command.help} See lmflow {command.name} --help."
    if not found:
        raise PluginError(explain_unknown(plugins, name))


def describe_component(slot: str, component: type[Component], distribution: str) -> Iterator[str]:
    """A component and its options, a line each."""
    yield f"{slot} {component.name} ({distribution}): {first_line(component)}"
    for requirement in component.missing():
        yield f"  needs {requirement.module}, which is not installed: pip install {requirement.install}"
    prefix = MULTIPLE[slot] + "." + component.name if slot in MULTIPLE else slot
    for key, info in component.model_fields.items():
        default = (
            "required" if info.is_required() else f"default {option_text(info.get_default(call_default_factory=True))}"
        )
        yield f"  --{prefix}.{key}  {info.description} [{default}]"


def every_offer(plugins: Plugins) -> Iterator[tuple[str, Offer]]:
    """Slot and offer of everything installed, in the order of the slots."""
    for slot in SLOTS:
        for offers in plugins.offers(slot).values():
            yield from ((slot, offer) for offer in offers)


def offered(plugins: Plugins, distribution: str) -> list[tuple[str, str, str, type[Component] | None]]:
    """(slot, name, first line of help, class) of what a distribution offers; a command has no class."""
    found: list[tuple[str, str, str, type[Component] | None]] = [
        (slot, offer.component.name, first_line(offer.component), offer.component)
        for slot, offer in every_offer(plugins)
        if offer.distribution == distribution
    ]
    commands = [command for command, of in plugins.commands if of == distribution]
    return [*found, *(("command", command.name, command.help, None) for command in commands)]


def matches(wanted: str, name: str, distribution: str) -> bool:
    """Whether `wanted` is the component's name, its distribution's, or `distribution:name`."""
    of, _, own = wanted.rpartition(":")
    return (own == name and same_name(of or distribution, distribution)) or same_name(wanted, distribution)


def explain_unknown(plugins: Plugins, name: str) -> str:
    """What to say of a name that nothing has."""
    components = {offer.component.name for _, offer in every_offer(plugins)}
    known = [*plugins.distributions(), *components, *(command.name for command, _ in plugins.commands)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"installed: {', '.join(plugins.distributions())}"
    return f"neither a plugin nor a component is called {name}; {hint}"


def first_line(component: type[Any]) -> str:
    """A component's help."""
    return (inspect.getdoc(component) or "").partition("\n")[0]


def interface(plugin: Plugin) -> str:
    """The versions of the interface a plugin declares, as text."""
    if plugin.interface is None:
        return "not declared"
    low, high = plugin.interface
    return str(low) if low == high else f"{low} to {high}"


def as_dict(plugins: Plugins) -> dict[str, Any]:
    """Everything the list shows, with options, as plain values; every distribution has a `status`."""
    return {
        "interface": INTERFACE_VERSION,
        "plugins": [
            *(_loaded(plugins, plugin) for plugin in plugins.loaded),
            *({**_identity(each), "status": "disabled", "components": []} for each in plugins.disabled),
            *(
                {**_identity(each), "status": "broken", "components": [], "reason": each.reason}
                for each in plugins.broken
            ),
        ],
        "conflicts": plugins.conflicts(),
    }


def _identity(plugin: Any) -> dict[str, Any]:
    return {"distribution": plugin.distribution, "entry_point": plugin.entry_point, "version": plugin.version}


def _loaded(plugins: Plugins, plugin: Plugin) -> dict[str, Any]:
    return {
        **_identity(plugin),
        "status": "loaded",
        "interface": plugin.interface,
        "events": plugins.heard_by(plugin.distribution),
        "components": [
            {
                "slot": slot,
                "name": name,
                "help": text,
                "missing": [] if component is None else [f"pip install {each.install}" for each in component.missing()],
                "options": [] if component is None else _options(component),
            }
            for slot, name, text, component in offered(plugins, plugin.distribution)
        ],
    }


def _options(component: type[Component]) -> Sequence[dict[str, Any]]:
    return [
        {
            "name": key,
            "type": option_type(info),
            "required": info.is_required(),
            "default": None if info.is_required() else plain(info.get_default(call_default_factory=True)),
            "help": info.description,
        }
        for key, info in component.model_fields.items()
    ]
