"""`lmflow run`: one run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmflow.cli.options import Scanned, resolve_scanned, scan, with_recipe_options
from lmflow.errors import RunDirectoryError
from lmflow.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from lmflow.journal_display import Display

FIXED = {"--output": True, "--resume": False, "--overwrite": False, "--quiet": False, "--json": False}


def make_command(arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]]:
    """The `run` command for these arguments, and what is left of them for Typer to parse."""
    plugins = load_plugins()
    scanned = scan(arguments, plugins, FIXED)

    def run(
        recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="A recipe file.")] = None,
        *,
        output: Annotated[Path | None, typer.Option(help="The run's directory; by default a new one in runs/.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print run.json on standard output, nothing else.")] = False,
    ) -> None:
        """Carry out one recipe."""
        start(plugins, scanned, recipe, output, resume=resume, overwrite=overwrite, quiet=quiet, as_json=as_json)

    return with_recipe_options(run, scanned, plugins), scanned.rest


def start(
    plugins: Plugins,
    scanned: Scanned,
    recipe: Path | None,
    output: Path | None,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Resolve, run, and show the result."""
    if resume and output is None:
        raise RunDirectoryError("--resume needs --output DIR, the directory of the run to continue.")
    if resume and output and recipe is None and not scanned.settings:
        from lmflow.run_directory import RECIPE, check_usable

        check_usable(output, resume=True, overwrite=False)
        recipe = output / RECIPE
    resolved = resolve_scanned(scanned, plugins, recipe)
    from lmflow.run import run

    display = make_display(silent=quiet or as_json)
    with warnings.catch_warnings():
        show_own_warnings(display)
        for broken in plugins.broken:
            display.note(f"plugin {broken.distribution} is broken and left out ({broken.reason}); see lmflow plugins")
        try:
            result = run(resolved, plugins, output=output, resume=resume, overwrite=overwrite, display=display)
        finally:
            display.close()
    if as_json:
        import json

        sys.stdout.write(json.dumps({"directory": str(result.directory), **result.record}, ensure_ascii=False) + "\n")
    elif not quiet:
        from lmflow.cli.display import show_summary

        show_summary(result.record, result.directory)


def make_display(*, silent: bool) -> Display:
    """Where the run is shown."""
    if silent:
        from lmflow.journal_display import Silent

        return Silent()
    from lmflow.cli.display import make_terminal_display

    return make_terminal_display()


def show_own_warnings(display: Display) -> None:
    """Warnings about plugins become notes; those of libraries say nothing to the user of a command."""
    from lmflow.plugins import PluginWarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, PluginWarning):
            display.note(str(message))

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", PluginWarning)
    warnings.showwarning = show  # type: ignore[assignment]
