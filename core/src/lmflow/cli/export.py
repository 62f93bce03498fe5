"""`lmflow export`: weights of a finished run for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmflow.cli.installed import installed_plugins

group = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Source = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or an adapter's.")]
Output = Annotated[Path, typer.Option(help="Directory to write; it must not exist yet.")]
Dtype = Annotated[
    str | None, typer.Option(metavar="float32|bfloat16|float16", help="Number format; by default the run's precision.")
]


@group.callback()
def _keep_subcommands() -> None:
    """Without this, a group of one command would be that command."""


@group.command("merge")
def merge(run: Source, output: Output, dtype: Dtype = None) -> None:
    """Write one model directory that plain Transformers loads, adapters merged in."""
    from lmflow.models.export import merge as write

    written = write(run, output, installed_plugins(), dtype)
    sys.stdout.write(f"{written}\n")
