"""`lmflow data`: look at a data set as the model will see it, check all of it, write it in another format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lmflow.api.parts import READING_SECTION, formats_in
from lmflow.cli.help import recipe_help
from lmflow.cli.options import Scanned, scan
from lmflow.components import DataFormat, LoadRequest
from lmflow.errors import DataError, RecipeError
from lmflow.formatting import counted
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import resolve_parts
from lmflow.recipe.sections.data import DataOptions
from lmflow.recipe.settings import DATA, Origin, Scope, Setting
from lmflow.run_files import to_json
from lmflow.terminal import printable, write_error, write_out, write_styled

if TYPE_CHECKING:
    from lmflow.data.sample import Sample
    from lmflow.data.tools.check import CheckReport
    from lmflow.data.tools.convert import Converted
    from lmflow.data.tools.show import Piece, Place
    from lmflow.models.language_model import LanguageModel

FIXED: Mapping[str, Mapping[str, bool]] = {
    "show": {"--count": True, "--table": False, "--json": False},
    "check": {"--json": False},
    "convert": {"--to": True, "--output": True, "--allow-loss": False, "--lmflow": False},
}
ABOUT = {
    "show": "Show samples token by token, what is trained set off; with --data.packing true, the rows too.",
    "check": (
        "Read everything and report errors, which stop a run, warnings, which it prints, and notes; with --model those "
        "of the tokens too. Exits with 1 if there are errors."
    ),
    "convert": "Write records in another format, and say what that cannot hold.",
}
HELP = {
    "show": (
        ("-n, --count N", "Samples to show [default: 3]."),
        ("--table", "A line for each token."),
        ("--json", "Print one JSON object on standard output, with every token."),
    ),
    "check": (("--json", "Print one JSON object on standard output, with every finding."),),
    "convert": (
        ("--to NAME", "The format to write."),
        ("--output FILE", "Where to; JSON lines (.jsonl, .json), compressed if it ends in .gz."),
        ("--allow-loss", "Write what the format can hold, and count what it cannot."),
        ("--lmflow", 'Write LMFlow\'s own file, {"type", "instances"}.'),
    ),
}
SHOWN = 5
"""Findings of each kind that are shown; --json has them all."""
BAR = 40


def make_group(plugins: Plugins, arguments: Sequence[str]) -> tuple[typer.Typer, list[str]] | None:
    """The `data` commands for these arguments, and what is left for Typer; None if help was all they asked."""
    called = arguments[0]
    scope = scope_of(called)
    scanned = scan(arguments[1:], plugins, FIXED.get(called, {}), scope)
    if scanned.wants_help and called in ABOUT:
        usage = f"lmflow data {called} [PATH] [OPTIONS]"
        write_styled(recipe_help(usage, ABOUT[called], HELP[called], scanned, plugins, scope))
        return None
    group = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    commands = {"show": make_show, "check": make_check, "convert": make_convert}
    for name, make in commands.items():
        group.command(name, help=ABOUT[name])(make(plugins, scanned, scope))
    return group, [*arguments[:1], *scanned.rest]


def scope_of(called: str) -> Scope:
    """What the options of a `data` command can set: how records are read and, but for convert, fitted to a model."""
    if called == "convert":
        return Scope(f"data {called}", (DATA,), READING_SECTION)
    return Scope(f"data {called}", ("model", "context", DATA), {DATA: DataOptions})


Where = Annotated[str | None, typer.Argument(metavar="[PATH]", help="File or directory of records, or a hub name.")]


def make_show(plugins: Plugins, scanned: Scanned, scope: Scope) -> Callable[..., None]:
    """`lmflow data show`."""

    def show(
        path: Where = None,
        count: Annotated[int, typer.Option("--count", "-n", min=1)] = 3,
        table: Annotated[bool, typer.Option("--table")] = False,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        from lmflow.data.dataset import load_dataset
        from lmflow.data.source import count_records
        from lmflow.data.tools.show import shown_as_data, shown_sequences

        parts = resolve_data(plugins, scanned, scope, path)
        data = parts["data"].model_copy(update={"limit": count})
        dataset, summary = load_dataset(data, formats_in(parts, plugins), 0)
        model = skeleton(parts, plugins)
        samples = [*dataset.train, *dataset.heldout][:count]
        shown = [each for sample in samples for each in shown_sequences(model, sample, parts["data"])]
        sequences = [sequence for sequence, _ in shown]
        rows = packed_rows(model, sequences, parts["data"]) if parts["data"].packing is True else None
        if as_json:
            about = {"path": summary.path, "format": summary.format}
            found = shown_as_data(model.tokenizer, shown, rows[0] if rows else None)
            write_out(to_json({**about, **found}) + "\n", exact=True)
            return
        summary = replace(summary, of=count_records(data))
        say(f"{summary.describe()}\n{''.join(handed_over(model, samples))}")
        for sequence, answers in shown:
            write_styled(show_sequence(model, sequence, answers, as_table=table) + "\n")
        if rows is not None:
            say("\n".join(row_lines(*rows)))

    return show


def handed_over(model: LanguageModel, samples: Iterable[Sample]) -> Iterator[str]:
    """A line on how turns are given to the chat template, where that is otherwise than they are written."""
    from lmflow.data.template_traits import traits_of

    turns = [turn for sample in samples if sample.templated for turn in sample.messages]
    if turns and (said := traits_of(model.tokenizer).form.describe(turns)):
        yield f"handed to the chat template: {', '.join(said)}\n"


def make_check(plugins: Plugins, scanned: Scanned, scope: Scope) -> Callable[..., None]:
    """`lmflow data check`."""

    def check(path: Where = None, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        from lmflow.data.tools.check import check_data

        parts = resolve_data(plugins, scanned, scope, path)
        named = any(setting.path.partition(".")[0] == "model" for setting in scanned.settings)
        model = skeleton(parts, plugins) if named else None
        report = check_data(parts["data"], formats_in(parts, plugins), model)
        if as_json:
            write_out(to_json(report.as_dict()) + "\n", exact=True)
        else:
            say("\n".join(report_lines(report, model)))
        if report.errors:
            raise typer.Exit(1)

    return check


def make_convert(plugins: Plugins, scanned: Scanned, scope: Scope) -> Callable[..., None]:
    """`lmflow data convert`."""

    def convert(
        path: Where = None,
        to: Annotated[str, typer.Option("--to")] = "",
        output: Annotated[Path | None, typer.Option("--output")] = None,
        allow_loss: Annotated[bool, typer.Option("--allow-loss")] = False,
        as_lmflow: Annotated[bool, typer.Option("--lmflow")] = False,
    ) -> None:
        from lmflow.data.source import read_sources, unmet_names
        from lmflow.data.tools.convert import check_output, convert, write_records

        if not to or output is None:
            raise RecipeError(["--to and --output: both are needed: which format to write, and where"])
        parts = resolve_data(plugins, scanned, scope, path)
        target = cast("type[DataFormat]", plugins.find("data", to))()
        check_output(output)
        sources = read_sources(parts["data"], formats_in(parts, plugins))
        for told in unmet_names(sources, parts["data"]):
            say_error(told)
        found = (each for source in sources for each in convert(source.samples, target, source.format))
        lost: dict[str, list[str]] = {}
        records = kept(found, lost, target.name, allow_loss=allow_loss)
        count = write_records(output, records, target.name if as_lmflow else None)
        write_out(f"{output}\n")
        say_error(f"{counted(count, 'record')} of {target.name} written")
        for source in sources:
            if source.skipped:
                say_error(f"{source.skipped:,} that cannot be used skipped, such as {source.problems[0]}")
        for words, places in lost.items():
            say_error(f"{words} in {len(places):,} ({', '.join(places[:3])}{', …' if len(places) > 3 else ''})")

    return convert


def kept(
    found: Iterable[Converted], lost: dict[str, list[str]], name: str, *, allow_loss: bool
) -> Iterator[Mapping[str, Any]]:
    """The records; `lost` collects where what was lost. Raises DataError at the first, unless that is allowed.

    What the old format did not read either is no part of the sample: that is told and no fault.
    """
    for each in found:
        if each.lost and not allow_loss:
            raise DataError(
                f"{each.source}: format {name} cannot hold {', '.join(each.lost)}. Choose another format, or write "
                "what it can hold with --allow-loss."
            )
        for words in (*(f"lost: {part}" for part in each.lost), *(f"left out: field {field}" for field in each.unread)):
            lost.setdefault(words, []).append(each.source)
        yield each.record


def resolve_data(plugins: Plugins, scanned: Scanned, scope: Scope, path: str | None) -> dict[str, Any]:
    """The parts the command line names; the path may stand alone. Raises RecipeError with every mistake."""
    given = [] if path is None else [Setting("data.path", path, Origin("option", "PATH"))]
    try:
        parts = resolve_parts(plugins, scope, [*scanned.settings, *given])
    except RecipeError as error:
        raise RecipeError([*scanned.problems, *error.problems]) from None
    if scanned.problems:
        raise RecipeError(scanned.problems)
    return parts


def skeleton(parts: Mapping[str, Any], plugins: Plugins) -> LanguageModel:
    """The model's tokenizer and configuration, with the template the data asks for."""
    from lmflow.data.tokenize import prepare_tokenizer

    model: LanguageModel = parts["model"].skeleton(LoadRequest(context=parts["context"], plugins=plugins))
    prepare_tokenizer(model.tokenizer, parts["data"])
    return model


# Showing


def show_sequence(model: LanguageModel, sequence: Any, answers: str, *, as_table: bool) -> str:
    """A sequence for the terminal: in colour where there is any, else with marks."""
    from lmflow.data.tools.show import pieces_of, plain, table

    pieces = list(pieces_of(model.tokenizer, sequence))
    trained = f"{sequence.num_targets:,} trained{answers and f': {answers}'}"
    head = f"{printable(sequence.source)}  {counted(len(sequence), 'token')}, {trained}"
    if as_table:
        return "\n".join([head, *table(pieces), ""])
    return f"{head}\n{coloured(pieces) if in_colour() else plain(pieces)}\n"


def coloured(pieces: Sequence[Piece]) -> str:
    """Trained tokens green, others grey, every second one underlined, so that one sees where they end."""
    from lmflow.data.tools.show import visible

    parts = []
    for index, piece in enumerate(pieces):
        style = ("1;32" if piece.is_target else "90") + (";4" if index % 2 else "")
        lines = (f"\x1b[{style}m{line}\x1b[0m" if line else "" for line in visible(piece.text).split("\n"))
        parts.append("↵\n".join(lines))
    return "".join(parts)


def packed_rows(model: LanguageModel, sequences: Sequence[Any], data: DataOptions) -> tuple[list[list[Place]], int]:
    """The rows these sequences are packed into, and how long a row may be."""
    from lmflow.data.lengths import fit_lengths
    from lmflow.data.tools.show import packed_layout
    from lmflow.models.encoding import length_limit

    limit = length_limit(model, data) or max(map(len, sequences))
    sequences, _ = fit_lengths(sequences, limit, data.too_long)
    return packed_layout(sequences, limit), limit


def row_lines(layout: Sequence[Sequence[Place]], limit: int) -> Iterator[str]:
    """A line for each row: how full it is, and what lies where."""
    for index, row in enumerate(layout, 1):
        used = sum(place.length for place in row)
        inside = ", ".join(f"{place.source} at {place.start:,} ({place.length:,})" for place in row)
        yield f"row {index}: {used:,} of {limit:,} tokens ({used / limit:.0%}): {inside}"


# Reporting


def report_lines(report: CheckReport, model: LanguageModel | None) -> Iterator[str]:
    """What was found, for people."""
    from lmflow.data.formats.unread import told_unread

    turns = ", ".join(f"{count:,} {role}" for role, count in report.turns.items())
    where, kind = report.path or report.format, report.format and f" of format {report.format}"
    held = f" ({report.validation:,} held out)" if report.validation else ""
    yield f"{where}: {counted(report.samples, 'sample')}{kind}{held}, turns: {turns or 'none'}"
    if report.unread:
        yield told_unread(report.unread)
    yield from (f"not read: {files}" for files in report.unread_files)
    yield from report.unmet
    if model is None:
        yield "Name a model with --model to count and check its tokens."
    elif report.lengths is not None:
        yield f"to train on, by {model.source}: {report.lengths.totals()}"
        yield from (f"  {line}" for line in report.lengths.table())
        yield from histogram_lines(report)
    yield from finding_lines(report)
    if report.errors:
        yield f"A run would stop: {'; '.join(report.errors).removesuffix('.')}."
    else:
        told = f" It would warn of {'; '.join(report.warnings)}." if report.warnings else ""
        yield f"Nothing here would stop a run.{told}"


def finding_lines(report: CheckReport) -> Iterator[str]:
    """Each kind of finding with how bad it is, how many there are, and the first of them."""
    from lmflow.data.findings import KINDS

    for kind, count in report.findings.counts.items():
        yield f"{report.findings.severity(kind)}: {KINDS[kind].counted(count)}"
        yield from (f"  {finding.source}: {finding.detail}" for finding in report.findings.examples_of(kind)[:SHOWN])
        if count > SHOWN:
            yield f"  … and {count - SHOWN:,} more (--json has them all)"
    yield from (f"error: {reason}" for reason in report.reasons)


def histogram_lines(report: CheckReport) -> Iterator[str]:
    """A bar for each range of lengths."""
    bins = report.histogram()
    if not bins:
        return
    most = max(count for _, _, count in bins)
    width = len(f"{bins[-1][1]:,}")
    for low, high, count in bins:
        yield f"  {low:>{width},}-{high:<{width},} {'#' * round(BAR * count / most):<{BAR}} {count:,}"


def in_colour() -> bool:
    """Whether standard output is a terminal that wants colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def say(text: str) -> None:
    """On standard output."""
    write_out(f"{text}\n")


def say_error(text: str) -> None:
    """On standard error."""
    write_error(f"{text}\n")
