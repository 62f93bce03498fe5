"""`lmflow run`: one run, or the stages of a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lmflow.api.quiet import quiet_libraries
from lmflow.cli.help import recipe_help
from lmflow.cli.options import Scanned, resolve_scanned, scan
from lmflow.cli.output import print_error
from lmflow.errors import RunDirectoryError
from lmflow.plugins import Plugins
from lmflow.recipe.stages import StagedRecipe
from lmflow.terminal import write_error, write_out, write_styled

if TYPE_CHECKING:
    from lmflow.recipe.recipe import Recipe, ResolvedRecipe
    from lmflow.run.display import Display
    from lmflow.run.record import RunResult

FIXED = {"--output": True, "--resume": False, "--overwrite": False, "--quiet": False, "--json": False}
HELP = (
    ("--output DIR", "The run's directory; by default a new one in runs/."),
    ("--resume", "Continue the run in --output."),
    ("--overwrite", "Replace the run in --output."),
    ("--quiet", "Print nothing but errors."),
    ("--json", "Print run.json on standard output, and nothing else."),
    (
        "--stages.NAME.OPTION VALUE",
        "An option for one stage of a recipe that has stages; all others are for every stage.",
    ),
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
        write_styled(recipe_help("lmflow run [RECIPE.yaml] [OPTIONS]", ABOUT, HELP, scanned, plugins))
        return None

    def run_command(
        recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]")] = None,
        *,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        resume: Annotated[bool, typer.Option("--resume")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Carry out one recipe."""
        resolved = resolve_run(plugins, scanned, recipe, output, resume=resume)
        from lmflow.distributed.environment import this_worker
        from lmflow.distributed.worker import follow_launcher
        from lmflow.run.run import run
        from lmflow.run.terminal import make_run_display
        from lmflow.run.workers import needs_workers

        worker = this_worker()
        shows = worker is None or worker.is_rank0
        make_display = partial(make_run_display, silent=quiet or as_json or not shows)
        if isinstance(resolved, StagedRecipe):
            follow_launcher()
            where = {"output": output, "resume": resume, "overwrite": overwrite}
            result = run_all(resolved, plugins, make_display, quiet=quiet or as_json, **where)
            if shows:
                show_result(result, quiet=quiet, as_json=as_json)
            return
        if needs_workers(resolved.recipe):
            flags = {"--resume": resume, "--overwrite": overwrite, "--quiet": quiet, "--json": as_json}
            start_workers(resolved.recipe, output, [flag for flag, given in flags.items() if given])
        follow_launcher()
        with closing(make_display()) as display, quiet_libraries():
            result = run(resolved, plugins, output=output, resume=resume, overwrite=overwrite, display=display)
        if shows:
            show_result(result, quiet=quiet, as_json=as_json)

    return run_command, scanned.rest


def resolve_run(
    plugins: Plugins, scanned: Scanned, recipe: Path | None, output: Path | None, *, resume: bool
) -> ResolvedRecipe | StagedRecipe:
    """The recipe of the command line; where a run is resumed without a file, options stand over the run's own."""
    if resume and output is None:
        raise RunDirectoryError("--resume needs --output DIR, the directory of the run to continue.")
    if resume and output and recipe is None:
        from lmflow.run.resume import recipe_to_resume

        recipe = recipe_to_resume(output)
    return resolve_scanned(scanned, plugins, recipe)


def run_all(
    staged: StagedRecipe, plugins: Plugins, make_display: Callable[[], Display], *, quiet: bool, **where: Any
) -> RunResult:
    """Carry out the stages of a recipe."""
    from lmflow.run.pipeline import run_stages

    flags = [*(["--quiet"] if quiet else []), *(["--debug"] if "--debug" in sys.argv else [])]
    with quiet_libraries():
        return run_stages(staged, plugins, make_display=make_display, flags=flags, **where)


def start_workers(recipe: Recipe, output: Path | None, flags: Sequence[str]) -> NoReturn:
    """Carry the recipe out in several processes, each this command again; exits as they do."""
    from lmflow.run.workers import run_in_workers

    debug = "--debug" in sys.argv
    if recipe.launch.host_rank > 0 and "--quiet" not in flags:
        write_error(f"host {recipe.launch.host_rank} of {recipe.launch.hosts}: host 0 shows the run\n")
    _, outcome = run_in_workers(recipe, output, [*flags, *(["--debug"] if debug else [])], show_all=debug)
    for line in outcome.lines:
        print_error(line, label="")
    raise typer.Exit(outcome.code)


def show_result(result: RunResult, *, quiet: bool, as_json: bool) -> None:
    """What the run left, on standard output."""
    if as_json:
        from lmflow.run_files import to_json

        write_out(to_json({"directory": str(result.directory), **result.record}) + "\n")
    elif not quiet:
        from lmflow.cli.display import show_summary

        show_summary(result.record, result.directory)
