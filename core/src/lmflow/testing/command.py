"""The conformance suite for commands: what every command promises to those who call it, and to their scripts."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from lmflow.components import Command
from lmflow.errors import LmflowError
from lmflow.testing.imports import heavy_libraries
from lmflow.testing.runs import supply

if TYPE_CHECKING:
    from lmflow.plugins import Plugins

ASKED_FOR_HELP = """
import importlib, sys
from lmflow.plugins import load_plugins
module, _, name = sys.argv[1].partition(":")
getattr(importlib.import_module(module), name)(load_plugins(), ["--help"])
"""
"""Asks a command for help."""


@dataclass(frozen=True)
class Called:
    """What came of a call: what it printed, and how it ended."""

    stdout: str
    stderr: str
    error: BaseException | None
    shown: bool
    """Whether help was all that was asked for, and was shown."""


class CommandSuite:
    """An examination of one command; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import CommandSuite

        class TestMyCommand(CommandSuite):
            @pytest.fixture
            def command(self):
                return Command("count", "Count the tokens of a file.", make_count)

            @pytest.fixture
            def call(self, tmp_path):
                return [str(write_file(tmp_path)), "--json"]

            @pytest.fixture
            def mistakes(self):
                return [["--depth", "3"], ["no-such-file"]]

    Each test is one requirement, and its docstring says which.
    """

    prints_json: ClassVar[bool] = True
    """Whether `--json` is among its options: `call` then has it, and prints one JSON value or one on each line."""

    @pytest.fixture
    def command(self) -> Command:
        """The command under examination; every suite supplies its own."""
        supply(self, "command")

    @pytest.fixture
    def call(self) -> Sequence[str]:
        """Arguments of a call that works, without `lmflow NAME`; every suite supplies its own."""
        supply(self, "call")

    @pytest.fixture
    def mistakes(self) -> Sequence[Sequence[str]]:
        """Arguments of calls that are mistakes of the user's, each of which is to be an error; every suite supplies
        its own."""
        supply(self, "mistakes")

    @pytest.fixture
    def plugins(self) -> Plugins:
        """What the command is given as installed."""
        from lmflow.plugins import load_plugins

        return load_plugins()

    # How it presents itself

    def test_it_has_a_name_and_a_sentence(self, command: Command) -> None:
        """The name is in small letters and dashes, and `help` one sentence, as `lmflow plugins` shows it."""
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", command.name), (
            f"expected a name in small letters, digits and dashes; found {command.name!r}"
        )
        holds = command.help.strip() and command.help.endswith(".") and "\n" not in command.help
        assert holds, f"expected `help` to be one sentence with a full stop; found {command.help!r}"

    def test_help_is_printed(self, command: Command, plugins: Plugins) -> None:
        """`make` given --help prints help that names the command, to standard output, and returns None."""
        called = self.run(command, plugins, ["--help"])
        assert called.error is None, f"expected --help to show help; found {called.error!r}"
        assert called.shown, (
            "expected make() to return None for --help, after printing it; it returned a function. Usual cause: help "
            "is left to Typer; print it in make(), where the options of the components named are known."
        )
        assert f"lmflow {command.name}" in called.stdout, (
            f"expected help that says how `lmflow {command.name}` is called; found {called.stdout[:200]!r}"
        )

    def test_help_loads_no_heavy_library(self, command: Command) -> None:
        """`lmflow NAME --help` imports neither torch nor transformers nor datasets: it answers at once."""
        module, name = command.make.__module__, command.make.__qualname__
        assert "<" not in name, (
            f"expected `make` to be a function of a module, so that a new process can import it; found {name}"
        )
        loaded = heavy_libraries(ASKED_FOR_HELP, f"{module}:{name}", expected="--help to work")
        assert not loaded, (
            f"expected --help to load no heavy library; found {loaded}. Usual cause: an import at the top of a module; "
            "put it into the function that needs it."
        )

    # What it prints

    def test_a_call_works(self, command: Command, plugins: Plugins, call: Sequence[str]) -> None:
        """The call of the fixture `call` ends without an error."""
        called = self.run(command, plugins, call)
        holds = called.error is None and not called.shown
        assert holds, f"expected {' '.join(call)} to work; found {called.error!r} {called.stderr[-300:]}"

    def test_json_is_all_that_is_printed(self, command: Command, plugins: Plugins, call: Sequence[str]) -> None:
        """With --json standard output holds one JSON value, or one on each line, and nothing else."""
        assert self.prints_json == ("--json" in call), (
            "expected --json in `call`, or prints_json = False for a command that has no such option"
        )
        if not self.prints_json:
            return
        printed = self.run(command, plugins, call).stdout
        assert printed.strip(), "expected JSON on standard output; found nothing"
        assert is_json(printed), (
            f"expected JSON alone on standard output; found {printed[:300]!r}. Usual cause: progress or a library's "
            "words on standard output; they belong on standard error."
        )

    # What is refused

    def test_mistakes_are_errors_of_lmflow(
        self, command: Command, plugins: Plugins, mistakes: Sequence[Sequence[str]]
    ) -> None:
        """Each of `mistakes` raises an LmflowError with a message and an exit code, and prints nothing to stdout."""
        for arguments in mistakes:
            called = self.run(command, plugins, arguments)
            error, asked = called.error, " ".join(arguments)
            assert isinstance(error, LmflowError) or _is_usage(error), (
                f"expected an LmflowError for {asked!r}; found {error!r}. Usual cause: an error of Python's or of a "
                "library's that is not turned into one, so that the user is shown a traceback."
            )
            if isinstance(error, LmflowError):
                holds = str(error).strip() and error.exit_code > 0
                assert holds, (
                    f"expected a message and an exit code above 0 for {asked!r}; found {error!r}, {error.exit_code}"
                )
            assert not called.stdout.strip(), (
                f"expected nothing on standard output for {asked!r}; found {called.stdout[:200]!r}"
            )

    def test_an_unknown_option_is_refused(self, command: Command, plugins: Plugins, call: Sequence[str]) -> None:
        """An option there is none of is an error that names it, also beside arguments that work."""
        for unknown in (["--no-such-option"], ["--no-such-option", "3"]):
            called = self.run(command, plugins, [*call, *unknown])
            error, message = called.error, f"{called.error} {called.stderr}"
            assert isinstance(error, LmflowError) or _is_usage(error), (
                f"expected an error for {' '.join(unknown)}; found {error!r}. Usual cause: unknown options are passed "
                "over, so that a misspelt one does nothing."
            )
            assert "no-such-option" in message, (
                f"expected an error for {' '.join(unknown)} that names the option; found {message[:300]!r}. Usual "
                "cause: the option is passed over, and what stands behind it is taken for something else."
            )

    def run(self, command: Command, plugins: Plugins, arguments: Sequence[str]) -> Called:
        """Call the command as `lmflow` does, in this process."""
        import typer

        printed, said = io.StringIO(), io.StringIO()
        error: BaseException | None = None
        shown = False
        with redirect_stdout(printed), redirect_stderr(said):
            try:
                made = command.make(plugins, list(arguments))
                shown = made is None
                if made is not None:
                    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
                    app.callback()(_root)
                    app.command(command.name, help=command.help)(made[0])
                    app(args=[command.name, *made[1]], prog_name="lmflow", standalone_mode=True)
            except SystemExit as stop:
                error = stop if stop.code else None
            except Exception as raised:
                error = raised
        return Called(printed.getvalue(), said.getvalue(), error, shown)


def is_json(text: str) -> bool:
    """Whether a text is one JSON value, or one on each line."""
    for parts in ([text], text.strip().splitlines()):
        with suppress(ValueError):
            for part in parts:
                json.loads(part)
            return True
    return False


def _is_usage(error: BaseException | None) -> bool:
    """Whether Typer refused the arguments, with a message and exit code 2."""
    return isinstance(error, SystemExit) and error.code == 2


def _root() -> None:
    """So that the command's name stays part of the arguments, though it is the only one."""
