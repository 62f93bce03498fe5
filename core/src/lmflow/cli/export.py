"""`lmflow export`: what a run trained, written for another tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.options import Scanned, scan
from lmflow.cli.output import stdout_for_results
from lmflow.components import Exporter, Model
from lmflow.errors import RecipeError
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import resolve_parts
from lmflow.recipe.settings import Origin, Scope, Setting
from lmflow.run.export import export as export_model
from lmflow.run.terminal import make_progress
from lmflow.terminal import write_out, write_styled

FIXED = {"--output": True}
HELP = (
    ("--output DIR", "Directory to write; it must not exist yet, or be empty."),
    ("--model.OPTION VALUE", "An option of the model that RUN is loaded as, such as --model.base for an adapter."),
    ("--debug", "Show tracebacks."),
)
ABOUT = "Write what a run trained for another tool. `lmflow export NAME --help` shows the options of an exporter."
USAGE = "lmflow export NAME RUN --output DIR [OPTIONS]"


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    offers = plugins.offers("exporter").get(name or "", ())
    fields = offers[0].component.model_fields if offers else {}
    aliases = {f"--{field.replace('_', '-')}": f"exporter.{field}" for field in fields}
    scope = Scope("export", ("exporter",), {}, aliases=aliases)
    scanned = scan(arguments[1:] if name else arguments, plugins, FIXED, scope)
    if name:
        scanned.settings.insert(0, Setting("exporter", name, Origin("option", "lmflow export")))
    if scanned.wants_help or not arguments:
        write_styled(recipe_help(USAGE, f"{ABOUT} Installed: {installed(plugins)}.", HELP, scanned, plugins, scope))
        return None

    def export(
        run: Annotated[Path, typer.Argument(metavar="RUN")], *, output: Annotated[Path, typer.Option("--output")]
    ) -> None:
        """Write what a run trained for another tool."""
        exporter, model = resolve(plugins, scanned, scope, str(run))
        with stdout_for_results(), closing(make_progress(quiet=False)) as display:
            written = export_model(exporter, plugins, str(run), output, display, model)
        write_out(f"{written}\n")

    return export, scanned.rest


def installed(plugins: Plugins) -> str:
    """The names of all exporters."""
    return ", ".join(sorted(plugins.offers("exporter")))


def resolve(plugins: Plugins, scanned: Scanned, scope: Scope, run: str) -> tuple[Exporter, Model]:
    """The exporter named and the model at RUN, each with its options; raises RecipeError with everything wrong."""
    if not any(setting.path == "exporter" for setting in scanned.settings):
        raise RecipeError(f"lmflow export: name what to write, one of {installed(plugins)}")
    source = Setting("model", run, Origin("option", "RUN"))
    parts = resolve_parts(plugins, replace(scope, slots=("exporter", "model")), [source, *scanned.settings])
    if scanned.problems:
        raise RecipeError(scanned.problems)
    return cast(Exporter, parts["exporter"]), cast(Model, parts["model"])
