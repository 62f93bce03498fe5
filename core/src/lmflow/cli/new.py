"""`lmflow new`: a plugin of your own, from the template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmflow.errors import RecipeError
from lmflow.terminal import write_out

KINDS = (
    "tuner, aligner, inferencer, model, data-format, reward, evaluator, tracker, context, attention, optimizer, "
    "schedule, exporter, command or listener."
)


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"What it adds: {KINDS}")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called, as in my-tuner.")],
    output: Annotated[Path, typer.Option(help="Directory to write DIR/NAME into.")] = Path(),
    author: Annotated[str, typer.Option(help="Who writes it.")] = "",
    description: Annotated[str, typer.Option(help="What it does, in a sentence.")] = "",
) -> None:
    """Start a plugin of your own: a whole distribution with a working component, tests and a CI file."""
    from lmflow.cli.installed import installed_plugins
    from lmflow.plugins.scaffold import known_kind, make_plugin, next_commands

    refuse_own_commands(known_kind(kind), name)
    made = make_plugin(kind, name, output, installed_plugins(), author=author, description=description)
    written = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    write_out(f"{made}\n" + "".join(f"  {path}\n" for path in written) + "\nNext:\n")
    write_out("".join(f"  {line}\n" for line in next_commands(made, known_kind(kind))))


def refuse_own_commands(kind: str, name: str) -> None:
    """Raise RecipeError for a command called as one of the core's, which would never be reached."""
    from lmflow.cli.app import COMMANDS
    from lmflow.plugins.scaffold import component_name

    called = component_name(name)
    if kind == "command" and called in COMMANDS:
        raise RecipeError([f"lmflow {called} is a command of lmflow's own; try my-{called}"])
