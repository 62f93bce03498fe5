"""`lmflow generate`: completions for one prompt, standard input, or a file of records."""

from __future__ import annotations

import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmflow.api.parts import READING_SECTION, formats_in
from lmflow.cli.help import recipe_help
from lmflow.cli.inference import (
    COMPUTE_ALIASES,
    COMPUTE_HELP,
    SAMPLING_SECTIONS,
    loaded,
    make_progress,
    resolve_for_use,
)
from lmflow.cli.options import Scanned, scan
from lmflow.cli.output import print_error
from lmflow.errors import DataError, Interrupted, RecipeError
from lmflow.formatting import counted, duration, number
from lmflow.inference.completion_file import CompletionFile, fingerprint
from lmflow.inference.prompts import (
    Framing,
    complete,
    complete_to_file,
    in_order,
    prompt_sample,
    read_prompts,
    report_refused,
    stream,
)
from lmflow.plugins import Plugins
from lmflow.recipe.settings import Scope
from lmflow.run.log import RunLog
from lmflow.run_files import to_json
from lmflow.terminal import write_out, write_styled

if TYPE_CHECKING:
    from lmflow.components import Inferencer
    from lmflow.data.sample import Sample
    from lmflow.inference.types import Sampling
    from lmflow.models.language_model import LanguageModel
    from lmflow.recipe.sections.data import Reading
    from lmflow.run.display import Display

FIXED = {
    "--prompt": True,
    "--output": True,
    "--system": True,
    "--image": True,
    "--raw": False,
    "--resume": False,
    "--overwrite": False,
    "--quiet": False,
}
SCOPE = Scope(
    "generate",
    ("model", "context", "attention", "inferencer", "data"),
    {**READING_SECTION, **SAMPLING_SECTIONS},
    aliases={"--input": "data.path", **COMPUTE_ALIASES},
)
HELP = (
    ("--prompt TEXT", "The prompt; without it and --input, standard input is one."),
    ("--input FILE", "Records of any data format, or a .txt file with a prompt per line."),
    ("--output FILE", "Where to write records, one JSON object per line; standard output if unset."),
    ("--resume", "Go on with the --output of an interrupted call."),
    ("--overwrite", "Replace the file --output names."),
    ("--image PATH", "An image for the prompt, where it says <image> or before it; may be repeated."),
    ("--system TEXT", "System text of prompts that bring none."),
    ("--raw", "Continue the text as it is, without the chat template."),
    *COMPUTE_HELP,
    ("--quiet", "Show no progress."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Complete a prompt, or every prompt of a file. On a terminal one prompt's completion appears as it is sampled; "
    "otherwise each prompt gives a JSON object with its `prompt` and its `completions`."
)


@dataclass(frozen=True)
class Options:
    """The command's own options."""

    prompt: str | None
    output: Path | None
    images: Sequence[str]
    system: str | None
    raw: bool
    resume: bool
    overwrite: bool
    quiet: bool


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED, SCOPE)
    if scanned.wants_help:
        write_styled(recipe_help("lmflow generate [OPTIONS]", ABOUT, HELP, scanned, plugins, SCOPE))
        return None

    def generate(
        *,
        prompt: Annotated[str | None, typer.Option("--prompt")] = None,
        output: Annotated[Path | None, typer.Option("--output")] = None,
        image: Annotated[list[str] | None, typer.Option("--image")] = None,
        system: Annotated[str | None, typer.Option("--system")] = None,
        raw: Annotated[bool, typer.Option("--raw")] = False,
        resume: Annotated[bool, typer.Option("--resume")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        """Complete prompts."""
        options = Options(prompt, output, image or [], system, raw, resume, overwrite, quiet)
        try:
            start(plugins, scanned, options)
        except Interrupted as error:
            raise Interrupted(error.signal_number, f"{error}{how_to_resume(arguments, options)}") from error

    return generate, scanned.rest


def start(plugins: Plugins, scanned: Scanned, options: Options) -> None:
    """Check everything, then load the model and complete."""
    scanned.problems += contradictions(options, any(setting.path == "data.path" for setting in scanned.settings))
    parts = resolve_for_use(scanned, plugins, SCOPE)
    samples = gather(parts, plugins, options)
    shared = output_options(parts, options)
    file = None
    if options.output is not None:
        refuse_input_as_output(options.output, parts["data"])
        file = CompletionFile(options.output, samples, shared, resume=options.resume, overwrite=options.overwrite)
    display = make_progress(quiet=options.quiet)
    try:
        with warnings.catch_warnings(action="ignore"):
            work(plugins, parts, samples, file, RunLog(None, plugins.emit, display), display)
    finally:
        display.close()


def work(
    plugins: Plugins,
    parts: dict[str, Any],
    samples: Sequence[Sample],
    file: CompletionFile | None,
    log: RunLog,
    display: Display,
) -> None:
    """Complete the prompts to where the user wants them."""
    if file is not None and not file.missing():
        display.note(f"{file.path} is complete: {counted(file.expected, 'record')}")
        return
    with loaded(parts, plugins, log) as model:
        answer(model, parts, samples, file, log, display)
        if figures := parts["inferencer"].figures():
            display.note("  ".join(f"{name} {number(value)}" for name, value in figures.items()))


def answer(
    model: LanguageModel,
    parts: dict[str, Any],
    samples: Sequence[Sample],
    file: CompletionFile | None,
    log: RunLog,
    display: Display,
) -> None:
    """Sample the completions and show or write them."""
    using = parts["inferencer"], parts["sampling"]
    if file is not None:
        started = time.monotonic()
        with log.handle_signals():
            complete_to_file(model, file, *using, log)
        display.note(f"{counted(file.expected, 'record')} in {file.path} ({duration(time.monotonic() - started)})")
    elif parts["data"] is None and on_terminal():
        display.close()
        show_on_terminal(model, samples[0], *using)
    else:
        with log.handle_signals(), log.phase("generating", len(samples)):
            records = complete(model, dict(enumerate(samples)), *using, lambda _: log.check_stop())
            print_records(records, log)


def on_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def show_on_terminal(model: LanguageModel, sample: Sample, inferencer: Inferencer, sampling: Sampling) -> None:
    """One completion as it is sampled, or several one after the other."""
    if sampling.n == 1:
        try:
            for piece in stream(model, sample, inferencer, sampling):
                write_out(piece, flush=True)
        finally:  # an interrupted answer leaves the cursor at the beginning of a line too
            write_out("\n")
        return
    for record in complete(model, {0: sample}, inferencer, sampling):
        for place, completion in enumerate(record["completions"], 1):
            write_out(f"[{place}] {completion['text']}\n")


def print_records(records: Iterable[dict[str, Any]], log: RunLog) -> None:
    """Records as JSON lines on standard output, in the order of the prompts."""
    seen = []
    for record in in_order(records):
        write_out(to_json(record) + "\n", exact=True, flush=True)
        seen.append({key: record[key] for key in record.keys() & {"error"}})
        log.advance_or_stop()
    report_refused(seen)


def how_to_resume(arguments: Sequence[str], options: Options) -> str:
    """What to type to go on, where that is possible."""
    if options.output is None:
        return ""
    words = [word for word in arguments if word not in ("--resume", "--overwrite")]
    return f" Continue with: {shlex.join(['lmflow', 'generate', *words, '--resume'])}"


def contradictions(options: Options, has_input: bool) -> list[str]:
    """Options that exclude each other."""
    problems = []
    if options.prompt is not None and has_input:
        problems.append("--prompt: given beside --input; give one of them")
    if options.images and has_input:
        problems.append("--image: given beside --input; records name their own images")
    if options.resume and options.output is None:
        problems.append("--resume: needs --output FILE, the file to go on with")
    if options.resume and options.overwrite:
        problems.append("--resume: given beside --overwrite; give one of them")
    if options.system is not None and options.raw:
        problems.append("--system: given beside --raw; a system text needs the chat template")
    return problems


def gather(parts: dict[str, Any], plugins: Plugins, options: Options) -> list[Sample]:
    """The prompts asked for."""
    framing = Framing(options.system, options.raw)
    if parts["data"] is not None:
        if options.prompt is not None:
            raise RecipeError(["--prompt: given beside --data; give one of them"])
        return read_prompts(parts["data"], formats_in(parts, plugins), framing, partial(print_error, label=""))
    if options.prompt is not None:
        return [prompt_sample(options.prompt, framing, options.images)]
    return [prompt_sample(read_standard_input(), framing, options.images, "standard input")]


def read_standard_input() -> str:
    """All of it, without the newline that ends it. Raises DataError on a terminal, where nothing was piped."""
    if sys.stdin is None or sys.stdin.isatty():
        raise RecipeError(["nothing to complete: give --prompt TEXT, --input FILE, or text on standard input"])
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 (byte {error.start + 1}); convert it") from None
    return text.removesuffix("\n").removesuffix("\r")


def refuse_input_as_output(output: Path, data: Reading | None) -> None:
    """Raise RecipeError where writing the output would destroy the input."""
    if data is not None and data.path is not None and output.exists() and output.samefile(data.path):
        raise RecipeError([f"--output: {output} is the input itself; name another file"])


def output_options(parts: dict[str, Any], options: Options) -> str:
    """What a record depends on beside its prompt: records of one file share it."""
    used = {
        name: part and {"name": getattr(part, "name", name), **part.model_dump(mode="json")}
        for name, part in parts.items()
        if name in ("model", "context", "inferencer", "sampling")
    }
    return fingerprint({**used, "system": options.system, "raw": options.raw})
