"""`lmflow draft`: train a draft for a target, on the target's own samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmflow.api.parts import READING_SECTION, formats_in
from lmflow.atomic import atomic_directory
from lmflow.cli.help import recipe_help
from lmflow.cli.inference import make_progress, resolve_for_use
from lmflow.cli.options import Scanned, scan
from lmflow.components import GenerateRequest, LoadRequest, RunContext
from lmflow.data.dataset import load_dataset
from lmflow.data.formats import Formats
from lmflow.errors import DataError, LmflowError, RecipeError, RunDirectoryError
from lmflow.inference.prompts import Framing, frame, read_prompts
from lmflow.inference.types import Sampling
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.recipe.sections.data import DataOptions, Reading
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.recipe.settings import Scope
from lmflow.run.log import RunLog
from lmflow.run_files import to_json
from lmflow.terminal import write_out, write_styled
from lmflow_speculative.options import DraftOptions
from lmflow_speculative.speculative import Speculative

if TYPE_CHECKING:
    from lmflow.data.sample import Prompt, Sample
    from lmflow.inference.types import Completion
    from lmflow.models.language_model import LanguageModel

RECORD = "draft.json"
FIXED = {"--output": True, "--from": True, "--raw": False, "--overwrite": False, "--quiet": False, "--json": False}
SCOPE = Scope(
    "draft",
    ("model", "context", "data", "inferencer", "optimizer", "schedule"),
    {**READING_SECTION, "draft": DraftOptions, "sampling": Sampling, "training": TrainingOptions},
    preferred={"sampling.n": 4, "training.learning_rate": 2e-3, "training.batch_size": 16, "training.epochs": 3.0},
    hidden=(
        "training.checkpoint_every",
        "training.checkpoint_minutes",
        "training.keep_checkpoints",
        "training.evaluate_every",
    ),
)
HELP = (
    ("--output DIR", "Where to write the draft, a model directory."),
    ("--from MODEL", "Train this model (directory, run, component) instead of a new one."),
    ("--raw", "Prompts as they are, without the chat template."),
    ("--overwrite", "Replace the draft in --output."),
    ("--quiet", "Show no progress."),
    ("--json", "Print one JSON object on standard output, and nothing else."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Train a draft model for --inferencer speculative: the target --model answers the prompts of --data.path, and a "
    "small Llama with its tokenizer learns the target's probabilities on those answers."
)


@dataclass(frozen=True)
class DraftRequest:
    """The command's own options."""

    output: Path
    start: str | None
    raw: bool
    overwrite: bool
    quiet: bool
    as_json: bool


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED, SCOPE)
    if scanned.wants_help:
        usage = "lmflow draft --model TARGET --data.path PROMPTS --output DIR [OPTIONS]"
        write_styled(recipe_help(usage, ABOUT, HELP, scanned, plugins, SCOPE))
        return None

    def draft(
        *,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        start: Annotated[str | None, typer.Option("--from")] = None,
        raw: Annotated[bool, typer.Option("--raw")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Train a draft."""
        if output is None:
            raise RecipeError([*scanned.problems, "--output: needed, the directory for the draft"])
        carry_out(plugins, scanned, DraftRequest(output, start, raw, overwrite, quiet, as_json))

    return draft, scanned.rest


def carry_out(plugins: Plugins, scanned: Scanned, request: DraftRequest) -> None:
    """Check everything, train, write, and say what came of it."""
    parts = resolve_for_use(scanned, plugins, SCOPE)
    if parts["data"] is None:
        raise RecipeError(
            ["--data.path: needed, the prompts the target is to answer (or --data NAME of embedded data)"]
        )
    check_output(request)
    display = make_progress(quiet=request.quiet or request.as_json)
    log = RunLog(None, plugins.emit, display)
    try:
        with warnings.catch_warnings(action="ignore"), log.handle_signals():
            record = train_draft(plugins, parts, request, log)
    finally:
        display.close()
    if request.as_json:
        write_out(to_json({"directory": str(request.output), **record}) + "\n")
    elif not request.quiet:
        low, high = record["acceptance_interval"]
        write_out(
            f"{request.output}: {record['parameters']:,} parameters beside {record['target_parameters']:,}; on prompts "
            f"it was not trained on {record['acceptance_rate']:.0%} of its {record['proposals']:,} proposals are "
            f"accepted (95% interval {low:.0%} to {high:.0%}), "
            f"{record['tokens_per_target_pass']:.2f} tokens per target pass\n"
            f"Use it with --inferencer speculative --inferencer.draft {request.output}\n"
        )


def train_draft(plugins: Plugins, parts: dict[str, Any], request: DraftRequest, log: RunLog) -> dict[str, Any]:
    """Sample from the target, train the draft, measure and write it; returns what draft.json holds."""
    from lmflow.models.device import DTYPES, choose_device, choose_precision
    from lmflow.training.setup import Setup
    from lmflow.training.trainer import Trainer
    from lmflow_speculative.distilling import as_sequences, distillation_from
    from lmflow_speculative.drafting import check_vocabularies

    training, sampling = parts["training"], parts["sampling"]
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    with log.phase(f"loading model {parts['model'].name}"):
        dtype, context = DTYPES[precision], parts["context"]
        target = parts["model"].load(LoadRequest(dtype=dtype, device=device, context=context, plugins=plugins))
        draft = begin_draft(plugins, target, parts["draft"], request.start, training.seed, device)
    check_vocabularies(draft, target)
    samples = read_samples(parts["data"], formats_in(parts, plugins), request.raw, training.seed)
    prompts = usable_prompts(target, draft, samples, sampling, log)
    count = min(parts["draft"].heldout_prompts, max(1, len(prompts) // 10))
    heldout, prompts = prompts[:count], prompts[count:]
    with parts["inferencer"].opened(RunContext(plugins=plugins, log=log, model=target)) as inferencer:
        drawn = answer(target, prompts, inferencer, sampling, log)
    sequences = as_sequences(prompts, drawn)
    setup = Setup(
        optimizer=parts["optimizer"],
        schedule=parts["schedule"],
        objective=distillation_from(target),
        precision=precision,
    )
    trainer = Trainer(draft, training, log, request.output / "checkpoints", setup)
    steps = training.total_steps(len(sequences))
    trainer.plan(steps)
    loss = trainer.fit(sequences, steps=steps, checkpoints=False)
    draft.module.eval()
    measured = Speculative().using(draft)
    context = RunContext(plugins=plugins, log=log, model=target)
    with log.phase("measuring", len(heldout)), measured.opened(context):
        one = sampling.model_copy(update={"n": 1})
        measured.generate(GenerateRequest(target, heldout, one, lambda _: log.check_stop()))
    record = {
        "target": target.source,
        "target_parameters": sum(p.numel() for p in target.module.parameters()),
        "parameters": sum(p.numel() for p in draft.module.parameters()),
        "sampling": sampling.model_dump(mode="json"),
        "prompts": len(prompts),
        "tokens": sum(len(completion.ids) for row in drawn for completion in row),
        "steps": steps,
        "mean_divergence": loss,
        "heldout_prompts": len(heldout),
        **measured.figures(),
        "acceptance_interval": [round(bound, 4) for bound in measured.statistics.acceptance_interval],
        "acceptance": [round(share, 4) for share in measured.statistics.acceptance],
    }
    write(draft, request.output, record)
    return record


def begin_draft(
    plugins: Plugins, target: LanguageModel, options: DraftOptions, start: str | None, seed: int, device: str
) -> LanguageModel:
    """The model to train, in float32: a new one, or the one `start` means."""
    from lmflow_speculative.distilling import build_draft

    if start is None:
        return build_draft(target, options, seed)
    try:
        return model_from_reference(plugins, start).load(LoadRequest(device=device, plugins=plugins))
    except RecipeError as error:
        raise RecipeError([f"--from: {problem.removeprefix('--model: ')}" for problem in error.problems]) from None


def read_samples(data: Reading, formats: Formats, raw: bool, seed: int) -> list[Sample]:
    """The prompts of the data, shuffled; of a mix by weight, of embedded data the training part."""
    import random

    framing = Framing(raw=raw)
    if data.path is not None:
        samples = read_prompts(data, formats, framing)
    else:
        dataset, _ = load_dataset(DataOptions(**data.model_dump(), validation=0.0), formats, seed)
        samples = [frame(sample, framing) for sample in dataset.train]
    return random.Random(seed).sample(samples, len(samples))


def usable_prompts(
    target: LanguageModel, draft: LanguageModel, samples: Sequence[Sample], sampling: Sampling, log: RunLog
) -> list[Prompt]:
    """The prompts with room for an answer in both models. Raises DataError where fewer than two are left."""
    limits = [model.context_length for model in (target, draft) if model.context_length is not None]
    longest = min(limits) - sampling.max_new_tokens if limits else None
    prompts = [target.encode_prompt(sample) for sample in samples]
    usable = [prompt for prompt in prompts if len(prompt.ids) and (longest is None or len(prompt.ids) <= longest)]
    if len(usable) < 2:
        raise DataError(
            f"{len(usable)} of {len(prompts)} prompts have a token and leave room for {sampling.max_new_tokens} more "
            f"in a context of {min(limits, default=0)}; two are needed. Shorten "
            "--sampling.max_new_tokens, or give others."
        )
    if len(usable) < len(prompts):
        log.note(f"{len(prompts) - len(usable):,} of {len(prompts):,} prompts leave no room for an answer: left out")
    return usable


def answer(
    target: LanguageModel, prompts: Sequence[Prompt], inferencer: Any, sampling: Sampling, log: RunLog
) -> list[list[Completion]]:
    """The target's completions, `sampling.n` for each prompt."""
    drawn: dict[int, list[Completion]] = {}
    with log.phase("sampling from the target", len(prompts)):
        request = GenerateRequest(target, prompts, sampling, lambda _: log.check_stop())
        for index, completions in inferencer.generate_each(request):
            drawn[index] = completions
            log.advance()
    return [drawn[index] for index in range(len(prompts))]


def check_output(request: DraftRequest) -> None:
    """Raise RunDirectoryError where --output holds anything but a draft that may be replaced."""
    path = request.output
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / RECORD).is_file():
        raise RunDirectoryError(f"--output {path}: it holds something that is no draft; choose another directory")
    if not request.overwrite:
        raise RunDirectoryError(f"--output {path}: it holds a draft already; replace it with --overwrite")


def write(draft: LanguageModel, output: Path, record: dict[str, Any]) -> None:
    """Write the model directory, complete or not at all."""
    try:
        with atomic_directory(output, replace=True) as partial:
            draft.save(partial)
            (partial / RECORD).write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise LmflowError(f"--output {output}: the draft could not be written: {error}") from error
