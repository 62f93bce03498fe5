"""`lmflow doctor`: what is wrong with this installation, and the command that mends each fault."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from lmflow.doctor.finding import Finding, Status, verdict
from lmflow.terminal import make_console, printable, write_out, write_styled

COLOURS: dict[Status, str] = {"error": "31", "warning": "33", "ok": "32"}
COLUMN, WIDEST = 9, 100
"""Where messages begin, and how far a line goes on a wide terminal."""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[Path, typer.Option("--output", help="Where runs are to go.")] = Path("runs"),
) -> None:
    """Print what is wrong with this installation, the worst first; the exit code is 1 where something will not work."""
    from lmflow.cli.app import COMMANDS
    from lmflow.doctor.examination import examine
    from lmflow.plugins import load_plugins

    plugins = load_plugins()
    with waiting("Trying what is installed; this takes a few seconds."):
        findings = examine(plugins, output, os.environ, Path.cwd(), COMMANDS)
    if as_json:
        from lmflow.run_files import to_json

        write_out(to_json(as_dict(findings, dict(plugins.versions())), indent=2) + "\n")
    else:
        width = min(shutil.get_terminal_size().columns, WIDEST)
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        write_styled("".join(f"{line}\n" for line in listing(findings, width, colour=colour)))
    if verdict(findings) == "error":
        raise typer.Exit(1)


def waiting(text: str) -> AbstractContextManager[Any]:
    """Within the context a terminal says what is waited for; nothing else is written anywhere."""
    if not sys.stderr.isatty():
        return nullcontext()
    return make_console(stderr=True).status(text)


def listing(findings: Sequence[Finding], width: int, *, colour: bool = False) -> Iterator[str]:
    """Each finding with its remedy, then a line that counts; commands are not wrapped, so that they can be copied."""
    for finding in findings:
        text = printable(f"{finding.check}: {finding.message}")
        first, *rest = textwrap.wrap(text, width - COLUMN, break_long_words=False, break_on_hyphens=False)
        label = f"{finding.status:<{COLUMN}}"
        yield f"\033[{COLOURS[finding.status]}m{label}\033[0m{first}" if colour else f"{label}{first}"
        yield from (" " * COLUMN + line for line in rest)
        yield from (f"{' ' * COLUMN}$ {line}" for line in printable(finding.remedy).splitlines())
    yield ""
    yield closing_line(findings)


def closing_line(findings: Sequence[Finding]) -> str:
    """How many faults there are, in a sentence."""
    errors, warnings = (sum(finding.status == each for finding in findings) for each in ("error", "warning"))
    if not errors and not warnings:
        return "Nothing is wrong with this installation."
    counted = [f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in _numbers(errors, warnings) if number]
    meaning = "what an error names will not work" if errors else "all works, though not all as you may expect"
    return f"{' and '.join(counted)}: {meaning}."


def as_dict(findings: Sequence[Finding], plugins: dict[str, str]) -> dict[str, Any]:
    """The findings as plain values, with the versions they are about."""
    from dataclasses import asdict

    from lmflow.doctor.examination import optional_versions
    from lmflow.plugins.installed import versions

    return {
        "status": verdict(findings),
        "findings": [asdict(finding) for finding in findings],
        "versions": {**versions(), **optional_versions()},
        "plugins": plugins,
    }


def _numbers(errors: int, warnings: int) -> list[tuple[int, str]]:
    return [(errors, "error"), (warnings, "warning")]
