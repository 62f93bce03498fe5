"""The commands and how their arguments reach them; plugins are loaded only by commands that need them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Annotated

import typer

from lmflow import __version__

HELP = "Fine-tune, align, extend and run large language models."
COMMANDS = ("run", "generate", "chat", "eval", "recipe", "plugins", "export")
CONTEXT = {"help_option_names": ["--help", "-h"]}


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
    from lmflow.errors import PluginError
    from lmflow.plugins import load_plugins

    plugins = load_plugins()
    command = plugins.find_command(name)
    if command is None:
        known = [*COMMANDS, *dict.fromkeys(command.name for command, _ in plugins.commands)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        broken = "".join(
            f". Plugin {each.distribution} is broken ({each.reason}); see `lmflow plugins`" for each in plugins.broken
        )
        raise PluginError(f"no command is called {name}; {hint}{broken}")
    made = command.make(plugins, arguments)
    if made is None:
        return None
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT)
    app.callback()(_root)  # so that the name stays part of the arguments, though it is the only command
    app.command(name, help=command.help)(made[0])
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
    command, rest = arguments[0], arguments
    for name, text in OPTION_COMMANDS.items():
        if command != name:
            app.command(name, help=text)(_placeholder)
            continue
        made = importlib.import_module(f"lmflow.cli.{name}").make_command(arguments[1:])
        if made is None:
            return None
        app.command(name, help=text)(made[0])
        rest = [name, *made[1]]
    if command == "recipe":
        from lmflow.cli.recipe import make_group

        group = make_group(arguments[1:] or ["--help"])
        if group is None:
            return None
        app.add_typer(group[0], name="recipe", help=RECIPE_HELP)
        rest = ["recipe", *group[1]]
    else:
        app.command("recipe", help=RECIPE_HELP)(_placeholder)
    _add_plain(app, command, "plugins", "What is installed, and what is wrong with it.")
    _add_plain(app, command, "export", "Weights of a finished run for other tools.")
    return app, rest


OPTION_COMMANDS = {
    "run": "Carry out a recipe: options, a YAML file, or both; without either, tune the embedded model.",
    "generate": "Complete a prompt, standard input, or every record of a file.",
    "chat": "Talk with a model in the terminal.",
    "eval": "Measure a model.",
}
"""Commands whose options are those of the components they name, each in a module with `make_command`."""
RECIPE_HELP = "Show a resolved recipe, explain where its values come from, or print the JSON schema."


def _add_plain(app: typer.Typer, command: str, name: str, help_text: str) -> None:
    """Add a group of commands, its module imported only when it is the one called."""
    if command == name:
        module = importlib.import_module(f"lmflow.cli.{name}")
        app.add_typer(module.group, name=name, help=help_text)
    else:
        app.command(name, help=help_text)(_placeholder)


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
) -> None:
    """Options of the command itself."""
