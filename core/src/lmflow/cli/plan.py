"""`lmflow plan`: what a run will take, without loading weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.options import resolve_scanned, scan
from lmflow.cli.output import stdout_for_results
from lmflow.formatting import counted, number, size
from lmflow.plugins import Plugins
from lmflow.recipe.settings import STAGES
from lmflow.recipe.stages import StagedRecipe
from lmflow.run.display import Silent
from lmflow.run.terminal import Lines
from lmflow.run_files import to_json
from lmflow.terminal import write_out, write_styled

if TYPE_CHECKING:
    from lmflow.data.dataset import DataSummary
    from lmflow.planning.plan import Plan, Steps
    from lmflow.recipe.recipe import Recipe

FIXED = {"--json": False, "--output": True, "--overwrite": False, "--quiet": False}
"""Options and whether they take a value; two mean nothing here, and are there for `lmflow run`'s sake."""
HELP = (
    ("--json", "Print one JSON object on standard output, and nothing else."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Say what a run would take: parameters, steps, tokens, and memory by part. It has the options of lmflow run, reads "
    "the data and loads no weights. Exits with 1 where the run would not fit, and says what to change."
)
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits",
    "models": "other models the aligner uses",
    "libraries": "Python and libraries",
}
"""What each part of a footprint is called."""


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The `plan` command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED)
    if scanned.wants_help:
        write_styled(recipe_help("lmflow plan [RECIPE.yaml] [OPTIONS]", ABOUT, HELP, scanned, plugins))
        return None

    def plan(
        recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]")] = None,
        *,
        as_json: Annotated[bool, typer.Option("--json")] = False,
        _output: Annotated[Path | None, typer.Option("--output")] = None,
        _overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        """Estimate one recipe, or its stages."""
        from lmflow.data.tally import tokenising_counted

        resolved = resolve_scanned(scanned, plugins, recipe)
        with tokenising_counted(Silent().count if as_json or quiet else Lines().count):
            if isinstance(resolved, StagedRecipe):
                plans = {stage.name: estimate(stage.planned.recipe, plugins) for stage in resolved.stages}
            else:
                plans = {"": estimate(resolved.recipe, plugins)}
        if as_json:
            described = {name: found.as_dict() for name, (found, _) in plans.items()}
            write_out(to_json(described.get("", {STAGES: described})) + "\n")
        else:
            write_out("\n".join(all_lines(plans)) + "\n")
        if not all(found.fits for found, _ in plans.values()):
            raise typer.Exit(1)

    return plan, scanned.rest


def estimate(recipe: Recipe, plugins: Plugins) -> tuple[Plan, DataSummary]:
    """What one run takes, and the data it reads."""
    from lmflow.data.dataset import load_dataset
    from lmflow.data.formats import formats_of
    from lmflow.planning.plan import load_skeleton, make_plan

    with warnings.catch_warnings(action="ignore"), stdout_for_results():
        model = load_skeleton(recipe, plugins)
        data, summary = load_dataset(recipe.data, formats_of(recipe, plugins), recipe.training.seed)
        return make_plan(recipe, model, data, plugins), summary


def all_lines(plans: Mapping[str, tuple[Plan, DataSummary]]) -> Iterator[str]:
    """Plans as they are printed, each below the name of its stage where it is one of several."""
    for at, (name, (found, summary)) in enumerate(plans.items()):
        if name:
            yield from [*([""] if at else []), f"stage       {name}"]
        yield f"data        {summary.describe()}"
        if found.lengths is not None:
            yield from indented(found.lengths.describe())
        yield from plan_lines(found)


def indented(text: str) -> list[str]:
    """The lines of a text, below what stands beside a name."""
    return [f"            {line}" for line in text.splitlines()]


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan as it is printed."""
    share = plan.trainable_parameters / plan.parameters
    trained = f"{number(plan.trainable_parameters)} of them trained ({share:.1%})"
    if plan.active_parameters < plan.trainable_parameters:
        trained += f", at most {number(plan.active_parameters)} in one step"
    yield f"model       {plan.model}, {number(plan.parameters)} parameters, {trained}"
    if plan.packing.why:
        yield f"rows        {plan.packing.describe()}"
    yield from steps_lines(plan.steps, item_of(plan))
    where = "on the GPU" if plan.device == "cuda" else "in main memory"
    each = "each process takes" if plan.processes > 1 else "it takes"
    if plan.memory is None:
        yield f"memory      cannot be estimated for this model: {plan.not_estimated}"
        return
    yield f"memory      {size(plan.memory.total)} is the most {each} {where}, computing in {plan.precision}:"
    for part, count in plan.memory.as_dict().items():
        if count:
            yield f"            {size(count):>8}  {PARTS[part]}"
    if plan.available is None:
        return
    verdict = "fits" if plan.fits else "too much"
    yield f"{verdict:<12}{size(plan.available)} are available{' to each' if plan.processes > 1 else ''}"
    for remedy in plan.remedies:
        enough = "fits" if remedy.memory_total <= plan.available else "still too much"
        yield f"            {size(remedy.memory_total):>8}  with {remedy.options} ({enough})"
    if not plan.fits and not any(each.memory_total <= plan.available for each in plan.remedies):
        yield "            Beyond that: a lower --data.max_length, a smaller model, or more memory."


def item_of(plan: Plan) -> str:
    """What steps go over: sequences, where samples give several of them."""
    lengths = plan.lengths
    return "sequence" if lengths and lengths.kept == plan.steps.samples != lengths.samples else "sample"


def steps_lines(steps: Steps, item: str) -> Iterator[str]:
    """What the run goes through."""
    told = "1 step" if steps.count == 1 else f"{number(steps.count or 0)} steps"
    count = "as many as the aligner takes" if steps.count is None else told
    tokens = f"{number(round(steps.tokens))} tokens each, {number(round(steps.num_targets))} of them trained"
    yield f"steps       {count} over {counted(steps.samples, item)}; {tokens}"
    passes = "1 forward pass" if steps.passes == 1 else f"up to {steps.passes} forward passes"
    largest = f"the largest has {steps.rows} x {number(steps.length)} tokens"
    yield f"            {passes} a step; {largest}; of all positions {1 - steps.real:.1%} are padding"
