"""`lmflow run`: one run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.options import Scanned, resolve_scanned, scan
from lmflow.cli.output import print_error, stdout_for_results
from lmflow.errors import RunDirectoryError
from lmflow.plugins import Plugins
from lmflow.recipe.settings import LAUNCH, Setting

if TYPE_CHECKING:
    from lmflow.distributed.environment import Worker
    from lmflow.recipe.recipe import Recipe, ResolvedRecipe
    from lmflow.run.display import Display

FIXED = {"--output": True, "--resume": False, "--overwrite": False, "--quiet": False, "--json": False}
HELP = (
    ("--output DIR", "The run's directory; by default a new one in runs/."),
    ("--resume", "Continue the run in --output."),
    ("--overwrite", "Replace the run in --output."),
    ("--quiet", "Print nothing but errors."),
    ("--json", "Print run.json on standard output, and nothing else."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Carry out a recipe: options, a YAML file, or both. Without either, the embedded model is tuned on the embedded "
    "tasks. Options mirror the file: `tuner: {name: lora, rank: 16}` is --tuner lora --tuner.rank 16."
)


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The `run` command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED)
    if scanned.wants_help:
        sys.stdout.write(recipe_help("lmflow run [RECIPE.yaml] [OPTIONS]", ABOUT, HELP, scanned, plugins))
        return None

    def run(
        recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]")] = None,
        *,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        resume: Annotated[bool, typer.Option("--resume")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Carry out one recipe."""
        start(plugins, scanned, recipe, output, resume=resume, overwrite=overwrite, quiet=quiet, as_json=as_json)

    return run, scanned.rest


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
    if resume and output and recipe is None and all(of_launch(each) for each in scanned.settings):
        from lmflow.run.directory import check_usable
        from lmflow.run_files import RECIPE

        check_usable(output, resume=True, overwrite=False)
        recipe = output / RECIPE
    resolved = resolve_scanned(scanned, plugins, recipe)
    from lmflow.distributed.environment import this_worker

    worker = this_worker()
    if worker is None and resolved.recipe.launch.total > 1:
        flags = {"--resume": resume, "--overwrite": overwrite, "--quiet": quiet, "--json": as_json}
        start_workers(resolved.recipe, output, [flag for flag, given in flags.items() if given])
        return
    carry_out(resolved, plugins, output, worker, resume=resume, overwrite=overwrite, quiet=quiet, as_json=as_json)


def of_launch(setting: Setting) -> bool:
    """Whether an option says in how many processes to go on, and nothing of what the run is."""
    return setting.path.startswith(f"{LAUNCH}.")


def start_workers(recipe: Recipe, output: Path | None, flags: Sequence[str]) -> None:
    """Carry the recipe out in several processes, each this command again; exits as they do."""
    from lmflow.distributed.launcher import launch
    from lmflow.recipe.recipe import dump
    from lmflow.run.run import default_output

    debug = "--debug" in sys.argv
    place = output or default_output(recipe)
    if recipe.launch.host_rank > 0 and "--quiet" not in flags:
        sys.stderr.write(f"host {recipe.launch.host_rank} of {recipe.launch.hosts}: host 0 shows the run\n")
    words = [*flags, *(["--debug"] if debug else [])]
    outcome = launch(recipe.launch, dump(recipe), place, words, show_all=debug)
    for line in outcome.lines:
        print_error(line, label="")
    raise typer.Exit(outcome.code)


def carry_out(
    resolved: ResolvedRecipe,
    plugins: Plugins,
    output: Path | None,
    worker: Worker | None,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run in this process, alone or as one of several, of which the main one shows the result."""
    from lmflow.distributed.worker import follow_launcher
    from lmflow.run.run import run

    follow_launcher()
    shows = worker is None or worker.is_rank0
    display = make_display(silent=quiet or as_json or not shows)
    try:
        # What libraries have to say means nothing to the user of a command.
        with warnings.catch_warnings(action="ignore"), stdout_for_results():
            result = run(resolved, plugins, output=output, resume=resume, overwrite=overwrite, display=display)
    finally:
        display.close()
    if as_json and shows:
        import json

        sys.stdout.write(json.dumps({"directory": str(result.directory), **result.record}, ensure_ascii=False) + "\n")
    elif shows and not quiet:
        from lmflow.cli.display import show_summary

        show_summary(result.record, result.directory)


def make_display(*, silent: bool) -> Display:
    """Where the run is shown."""
    if silent:
        from lmflow.run.display import Silent

        return Silent()
    from lmflow.cli.display import make_terminal_display

    return make_terminal_display()
