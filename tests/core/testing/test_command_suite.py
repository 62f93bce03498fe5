"""The suite of commands passes a good one, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from lmflow.components import Command
from lmflow.errors import DataError
from lmflow.testing import CommandSuite

HELP = "Usage: lmflow count FILE [--json]\n"
GOOD = '''
"""A command that counts words."""
import json, sys
from pathlib import Path
from typing import Annotated
import typer
from lmflow.errors import DataError

def make(plugins, arguments):
    if "--help" in arguments:
        sys.stdout.write("Usage: lmflow count FILE [--json]")
        return None
    return count, list(arguments)

def count(file: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    words = len(file.read_text().split())
    sys.stdout.write((json.dumps({"words": words}) if as_json else f"{words} words") + "\\n")
'''


def make_good(plugins: Any, arguments: Sequence[str]) -> Any:
    """Count the words of a file: a good command, from which the broken ones below differ in a line."""
    if "--help" in arguments:
        sys.stdout.write(HELP)
        return None
    return count, list(arguments)


def count(file: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    words = len(file.read_text().split())
    sys.stdout.write((json.dumps({"words": words}) if as_json else f"{words} words") + "\n")


def leaves_help_to_typer(plugins: Any, arguments: Sequence[str]) -> Any:
    return count, list(arguments)


def says_nothing_of_itself(plugins: Any, arguments: Sequence[str]) -> Any:
    if "--help" in arguments:
        sys.stdout.write("Usage: FILE\n")
        return None
    return count, list(arguments)


def greets(plugins: Any, arguments: Sequence[str]) -> Any:
    made = make_good(plugins, arguments)
    if made is not None:
        print("counting")
    return made


def raises_pythons(plugins: Any, arguments: Sequence[str]) -> Any:
    def raw(file: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        sys.stdout.write(json.dumps({"words": len(file.read_text().split())}) + "\n")

    return (raw, list(arguments)) if "--help" not in arguments else make_good(plugins, arguments)


def passes_over(plugins: Any, arguments: Sequence[str]) -> Any:
    return make_good(plugins, [each for each in arguments if each not in ("--no-such-option", "3")])


def takes_a_value_for_a_file(plugins: Any, arguments: Sequence[str]) -> Any:
    """Passes over an unknown option; what is behind it is then the error."""
    return make_good(plugins, [each for each in arguments if each != "--no-such-option"])


def names_nothing(plugins: Any, arguments: Sequence[str]) -> Any:
    if "--no-such-option" in arguments:
        raise DataError("something is wrong")
    return make_good(plugins, arguments)


def fails(plugins: Any, arguments: Sequence[str]) -> Any:
    def broken(file: Path, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        raise DataError("always")

    return (broken, list(arguments)) if "--help" not in arguments else make_good(plugins, arguments)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """A call that works and two mistakes."""
    (tmp_path / "words.txt").write_text("one two three")
    call = [str(tmp_path / "words.txt"), "--json"]
    return {"call": lambda: call, "mistakes": lambda: [["no-such-file"], []]}


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Writes a module that new processes can import too, and imports it; its name is that of the text."""

    def write(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.syspath_prepend(str(tmp_path))
        return __import__(name)

    return write


def command(make: Any, name: str = "count", text: str = "Count the words of a file.") -> Command:
    return Command(name, text, make)


def test_a_good_command_passes_everything(examine, given, importable):
    reports = examine(CommandSuite, command=command(importable("good_command", GOOD).make), **given)
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (command(make_good, "Count!"), "test_it_has_a_name_and_a_sentence", "found 'Count!'"),
        (command(make_good, text="Count"), "test_it_has_a_name_and_a_sentence", "one sentence with a full stop"),
        (command(leaves_help_to_typer), "test_help_is_printed", "it returned a function"),
        (command(says_nothing_of_itself), "test_help_is_printed", "how `lmflow count` is called"),
        (command(lambda *_: None), "test_help_loads_no_heavy_library", "a function of a module"),
        (command(fails), "test_a_call_works", "DataError('always')"),
        (command(greets), "test_json_is_all_that_is_printed", "expected JSON alone"),
        (command(raises_pythons), "test_mistakes_are_errors_of_lmflow", "FileNotFoundError"),
        (
            command(takes_a_value_for_a_file),
            "test_an_unknown_option_is_refused",
            "expected an error for --no-such-option",
        ),
        (command(names_nothing), "test_an_unknown_option_is_refused", "that names the option"),
        (command(passes_over), "test_an_unknown_option_is_refused", "expected an error for --no-such-option"),
    ],
)
def test_a_broken_command_fails_its_check(broken: Command, check: str, said: str, examine, given):
    report = examine(CommandSuite, command=broken, only=check, **given)[check]
    assert report.outcome == "failed"
    assert said in report.message


def test_a_heavy_import_is_noticed(examine, given, importable):
    check = "test_help_loads_no_heavy_library"
    heavy = importable("heavy_command", f"import torch\n{GOOD}")
    report = examine(CommandSuite, command=command(heavy.make), only=check, **given)[check]
    assert report.outcome == "failed"
    assert "found torch" in report.message


def test_a_suite_without_a_command_says_what_to_write(examine):
    reports = examine(CommandSuite)
    assert {report.outcome for report in reports.values()} == {"failed"}
    assert "write a fixture `command`" in reports["test_help_is_printed"].message
