"""`lmflow chat`: talk with a model in the terminal, or through a pipe."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Annotated

import typer

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
from lmflow.errors import LmflowError
from lmflow.inference.chat import Dialogue, ExitChat, hidden_note, run_command
from lmflow.plugins import Plugins
from lmflow.recipe.settings import Scope
from lmflow.run.log import RunLog
from lmflow.terminal import write_error, write_out, write_styled

FIXED = {"--system": True, "--quiet": False}
SCOPE = Scope(
    "chat",
    ("model", "context", "attention", "inferencer"),
    SAMPLING_SECTIONS,
    preferred={"sampling.temperature": 0.7, "sampling.max_new_tokens": 512},
    aliases=COMPUTE_ALIASES,
    hidden=("sampling.n",),
)
HELP = (
    ("--system TEXT", "System text at the beginning of the dialogue."),
    *COMPUTE_HELP,
    ("--quiet", "Write answers and errors only."),
    ("--debug", "Show tracebacks."),
)
ABOUT = (
    "Talk with a model. Answers appear as they are sampled; Ctrl-C stops the answer alone. /help lists the commands. "
    "A line that ends with a backslash goes on in the next."
)
PROMPT = "> "


def make_command(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    """The command for these arguments, and what is left of them for Typer; None if help was all they asked."""
    scanned = scan(arguments, plugins, FIXED, SCOPE)
    if scanned.wants_help:
        write_styled(recipe_help("lmflow chat [OPTIONS]", ABOUT, HELP, scanned, plugins, SCOPE))
        return None

    def chat(
        *,
        system: Annotated[str | None, typer.Option("--system")] = None,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
    ) -> None:
        """Talk with a model."""
        with begin(plugins, scanned, system, quiet=quiet) as dialogue:
            talk(dialogue, quiet=quiet)

    return chat, scanned.rest


@contextmanager
def begin(plugins: Plugins, scanned: Scanned, system: str | None, *, quiet: bool) -> Iterator[Dialogue]:
    """Load the model the options name, and talk with it within the context."""
    parts = resolve_for_use(scanned, plugins, SCOPE)
    display = make_progress(quiet=quiet)
    log = RunLog(None, plugins.emit, display)
    with ExitStack() as stack:
        try:
            with warnings.catch_warnings(action="ignore"):
                model = stack.enter_context(loaded(parts, plugins, log))
        finally:
            display.close()
        yield Dialogue(model, parts["inferencer"], parts["sampling"], system)


def talk(dialogue: Dialogue, *, quiet: bool) -> None:
    """Read lines and answer them until the user leaves; an error costs that line only."""

    def say(text: str) -> None:
        if not quiet:
            write_error(f"{text}\n")

    if sys.stdin.isatty():
        say("/help lists the commands; Ctrl-C stops an answer; Ctrl-D or /exit leaves")
    for line in read_lines(say):
        try:
            if line.startswith("/"):
                say(run_command(dialogue, line))
            elif line.strip():
                show_answer(dialogue, line, say)
        except ExitChat:
            return
        except LmflowError as error:
            for each in str(error).splitlines():
                print_error(each)


def show_answer(dialogue: Dialogue, text: str, say: Callable[[str], None]) -> None:
    """Write the answer as it is sampled; an interrupt ends it, and the dialogue keeps what there is."""
    hidden = dialogue.hidden
    try:
        with closing(dialogue.answer(text)) as pieces:
            for piece in pieces:
                write_out(piece, exact=True, flush=True)
    except KeyboardInterrupt:
        say(" [stopped]")
    write_out("\n", flush=True)
    if note := hidden_note(dialogue, hidden):
        say(note)


def read_lines(say: Callable[[str], None]) -> Iterator[str]:
    """What the user types, until the end of the input or a second interrupt in a row."""
    interrupted = False
    while True:
        try:
            line = read_line(PROMPT)
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{read_line('… ')}"
        except EOFError:
            if sys.stdin.isatty():
                write_out("\n")
            return
        except KeyboardInterrupt:
            write_out("\n")
            if interrupted:
                return
            interrupted = True
            say("once more, Ctrl-D or /exit leaves")
            continue
        interrupted = False
        yield line


def read_line(prompt: str) -> str:
    """One line, edited with readline where the terminal and Python have it. Raises EOFError at the end."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - importing it is what makes input() use it
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
