"""The commands and how their arguments reach them; plugins are loaded only by commands that need them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import typer

from lmflow.versions import __version__

HELP = "Fine-tune, align, extend and run large language models."
CONTEXT = {"help_option_names": ["--help", "-h"]}
COMMANDS = {
    "run": "Carry out a recipe: options, a YAML file, or both; without either, tune the embedded model.",
    "plan": "Say what a run would take: steps, tokens, memory by part; without loading weights.",
    "generate": "Complete a prompt, standard input, or every record of a file.",
    "chat": "Talk with a model in the terminal.",
    "eval": "Measure a model.",
    "data": "Look at a data set as the model will see it, check it, convert it.",
    "recipe": "Show a resolved recipe, explain where its values come from, or print the JSON schema.",
    "plugins": "What is installed, and what is wrong with it.",
    "doctor": "What is wrong with this installation, and the command that mends each fault.",
    "vocabulary": "Add tokens to a model, by name or learnt on a corpus.",
    "new": "Start a plugin of your own from the template.",
    "export": "Weights of a finished run for other tools.",
}
"""The core's commands, each in a module of its name.

A module has `command` (a function for Typer), `group` (a Typer app of subcommands), or, where options are those of the
components named, `make_command` or `make_group`, which are given the plugins and the arguments.
"""


def run_app(arguments: Sequence[str]) -> int:
    """Run the command `arguments` name; returns the exit code, or raises LmflowError."""
    if not arguments:
        arguments = ["--help"]
    command = arguments[0]
    if command.startswith("-") or command in COMMANDS:
        built = build_app(list(arguments))
    else:
        built = build_plugin_app(command, list(arguments[1:]))
    if built is None:
        return 0
    app, rest = built
    try:
        code = app(args=rest, prog_name="lmflow", standalone_mode=True)
    except SystemExit as stop:
        code = stop.code
    return code if isinstance(code, int) else 0


def build_plugin_app(name: str, arguments: list[str]) -> tuple[typer.Typer, list[str]] | None:
    """Like `build_app`, for a command of a plugin. Raises PluginError when there is none of that name."""
    from lmflow.cli.installed import installed_plugins
    from lmflow.errors import PluginError
    from lmflow.plugins.known import distribution_for
    from lmflow.plugins.user_code import cannot_exit

    plugins = installed_plugins(quiet="--quiet" in arguments)
    command = plugins.find_command(name)
    if command is None:
        known = [*COMMANDS, *dict.fromkeys(command.name for command, _ in plugins.commands)]
        near = difflib.get_close_matches(name, known, n=1)
        home = distribution_for("command", name)
        hint = f"lmflow plugins install {home} brings it" if home else f"there are {', '.join(known)}"
        hint = f"did you mean {near[0]}?" if near else f"{hint}."
        raise PluginError(f"no command is called {name}; {hint}{plugins.why_missing(name, home)}")
    made = command.make(plugins, arguments)
    if made is None:
        return None
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT)
    app.callback()(_root)  # so that the name stays part of the arguments, though it is the only command
    app.command(name, help=command.help)(cannot_exit(made[0]))
    return app, [name, *made[1]]


def build_app(arguments: list[str]) -> tuple[typer.Typer, list[str]] | None:
    """The Typer app for these arguments and what is left for it to parse; None if help was shown already."""
    app = typer.Typer(
        help=HELP,
        epilog="Plugins may add commands: lmflow plugins lists them.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )
    app.callback()(_root)
    called, rest = arguments[0], arguments[1:]
    for name in COMMANDS:
        if name != called:
            app.command(name, help=COMMANDS[name])(_placeholder)
            continue
        left = _add(app, name, importlib.import_module(f"lmflow.cli.{name}"), rest)
        if left is None:
            return None
        rest = left
    return app, [called, *rest]


def _add(app: typer.Typer, name: str, module: ModuleType, arguments: list[str]) -> list[str] | None:
    """Add the command that was called; returns the arguments left for Typer, None if help was shown already."""
    from lmflow.cli.fence import cannot_exit_within  # the plugins come with it, which an overview does without
    from lmflow.plugins.user_code import cannot_exit

    if hasattr(module, "command"):
        app.command(name, help=COMMANDS[name])(cannot_exit(module.command))
        return arguments
    if hasattr(module, "group"):
        app.add_typer(cannot_exit_within(module.group), name=name, help=COMMANDS[name])
        return arguments
    from lmflow.cli.installed import installed_plugins

    plugins = installed_plugins(quiet="--quiet" in arguments)
    if hasattr(module, "make_command"):
        made = module.make_command(plugins, arguments)
        if made is not None:
            app.command(name, help=COMMANDS[name])(cannot_exit(made[0]))
    else:
        made = module.make_group(plugins, arguments or ["--help"])
        if made is not None:
            app.add_typer(cannot_exit_within(made[0]), name=name, help=COMMANDS[name])
    return None if made is None else list(made[1])


def _placeholder() -> None:
    """Stands in the overview for a command that is not the one called."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lmflow {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    disable_plugin: Annotated[
        list[str] | None, typer.Option("--disable-plugin", metavar="NAME", help="Leave a distribution's plugin out.")
    ] = None,
) -> None:
    """Options that stand anywhere; the last two are taken out of the arguments before they come here."""
