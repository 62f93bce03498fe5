"""`lmflow eval`: measure a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from lmflow.api.evaluate import measure_parts
from lmflow.api.quiet import quiet_libraries
from lmflow.cli.help import recipe_help
from lmflow.cli.inference import (
    COMPUTE_ALIASES,
    COMPUTE_HELP,
    READING_SECTION,
    make_progress,
    resolve_for_use,
)
from lmflow.cli.options import Scanned, scan
from lmflow.components import Evaluator
from lmflow.formatting import number
from lmflow.models.load import Compute
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import chosen_components
from lmflow.recipe.settings import Scope
from lmflow.run_files import to_json
from lmflow.terminal import write_out, write_styled

FIXED = {"--output": True, "--overwrite": False, "--json": False, "--quiet": False}
SCOPE = Scope(
    "eval",
    ("evaluator", "model", "context", "attention", "data", "inferencer"),
    {**READING_SECTION, "compute": Compute},
    aliases=COMPUTE_ALIASES,
)
HELP = (
    ("--output DIR", "Where to write results.json, rows.jsonl, report.html and plots."),
    ("--overwrite", "Replace the results in --output."),
    ("--json", "Print one JSON object on standard output, and nothing else."),
    *COMPUTE_HELP,
    ("--quiet", "Print nothing but errors; useful with --output."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Measure a model with an evaluator on all records of --data.path; without a path, on the held-out part of what the "
    "data format brings. `--evaluator NAME --help` shows its options."
)


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED, SCOPE)
    if scanned.wants_help:
        write_styled(recipe_help("lmflow eval --evaluator NAME [OPTIONS]", ABOUT, HELP, scanned, plugins, SCOPE))
        return None

    def evaluate(
        *,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        """Measure a model."""
        parts = resolve(plugins, scanned)
        with closing(make_progress(quiet=quiet or as_json)) as display, quiet_libraries():
            measured = measure_parts(parts, plugins, display, output, overwrite=overwrite)
        if as_json:
            write_out(to_json(measured.record) + "\n")
        elif not quiet:
            lines = "".join(f"{path}\n" for path in measured.written)
            write_out(table(measured.evaluation.metrics) + lines)

    return evaluate, scanned.rest


def resolve(plugins: Plugins, scanned: Scanned) -> dict[str, Any]:
    """The parts named; an evaluator is required, and data where it reads any."""
    chosen = chosen_components(plugins, None, scanned.settings, SCOPE)
    evaluator = cast("type[Evaluator] | None", chosen.get("evaluator"))
    named = any(setting.path.partition(".")[0] == "evaluator" for setting in scanned.settings)
    if evaluator is None and not named:
        names = ", ".join(sorted(plugins.offers("evaluator")))
        scanned.problems.append(f"--evaluator: name what to measure, one of {names}")
    return resolve_for_use(scanned, plugins, SCOPE, reads_data=evaluator is None or evaluator.reads_data)


def table(metrics: Mapping[str, float]) -> str:
    """The metrics in two columns."""
    width = max(map(len, metrics), default=0)
    return "".join(f"{name:<{width}}  {number(value):>12}\n" for name, value in metrics.items())
