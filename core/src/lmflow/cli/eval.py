"""`lmflow eval`: measure a model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.inference import (
    COMPUTE_ALIASES,
    COMPUTE_HELP,
    load_parts,
    make_progress,
    resolve_for_use,
)
from lmflow.cli.options import Scanned, scan
from lmflow.cli.output import stdout_for_results
from lmflow.cli.reading import READING_SECTION, formats_in
from lmflow.components import EvaluateContext, Evaluator
from lmflow.data.dataset import read_samples
from lmflow.evaluators.measure import measure
from lmflow.formatting import number
from lmflow.models.load import Compute
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import data_as_dict
from lmflow.recipe.resolve import chosen_components
from lmflow.recipe.settings import Scope
from lmflow.report.evaluation import check_directory, to_json, write_evaluation
from lmflow.run.log import RunLog

if TYPE_CHECKING:
    from lmflow.run.display import Display

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
        sys.stdout.write(recipe_help("lmflow eval --evaluator NAME [OPTIONS]", ABOUT, HELP, scanned, plugins, SCOPE))
        return None

    def evaluate(
        *,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        """Measure a model."""
        display = make_progress(quiet=quiet or as_json)
        try:
            with warnings.catch_warnings(action="ignore"), stdout_for_results():
                record, lines = start(plugins, scanned, output, display, overwrite=overwrite)
        finally:
            display.close()
        if as_json:
            sys.stdout.write(to_json(record) + "\n")
        elif not quiet:
            sys.stdout.write(table(record["metrics"]) + "".join(f"{line}\n" for line in lines))

    return evaluate, scanned.rest


def start(
    plugins: Plugins, scanned: Scanned, output: Path | None, display: Display, *, overwrite: bool
) -> tuple[dict[str, Any], list[Path]]:
    """Check everything, measure, and write; returns the record of it and what was written."""
    parts = resolve(plugins, scanned)
    if output is not None:
        check_directory(output, overwrite=overwrite)
    evaluator: Evaluator = parts["evaluator"]
    log = RunLog(None, plugins.emit, display)
    samples = read_samples(parts["data"], formats_in(parts, plugins), log.note) if evaluator.reads_data else []
    with log.phase(f"loading model {parts['model'].name}"):
        model = load_parts(parts, plugins, log)
    with log.handle_signals():
        context = EvaluateContext(
            plugins=plugins, log=log, model=model, samples=samples, inferencer=parts["inferencer"]
        )
        evaluation, record = measure(evaluator, context)
    described = {
        slot: parts[slot] and {"name": parts[slot].name, **parts[slot].model_dump(mode="json")}
        for slot in ("model", "context", "inferencer")
    }
    data = parts["data"] and data_as_dict(parts["data"], parts["format"], parts["format_options"])
    record = {**record, **described, "data": data, "notes": list(log.notes)}
    written: list[Path] = []
    if output is not None:
        written = write_evaluation(output, record, evaluation, evaluator)
    return record, written


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
