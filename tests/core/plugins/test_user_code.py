"""The fence around code of others: it ends no process, and a command it is called in does not end well."""

from __future__ import annotations

import sys

import pytest
import typer

from lmflow.cli.fence import cannot_exit_within
from lmflow.errors import LmflowError
from lmflow.plugins.user_code import ExitCalled, cannot_exit, fenced


def leave(code: int | str | None = None) -> None:
    """Ask Python to end."""
    sys.exit(code)


@pytest.mark.parametrize(("code", "shown"), [(0, "sys.exit(0)"), (None, "sys.exit()"), ("no", "sys.exit('no')")])
def test_within_the_fence_no_code_ends_python(code: int | str | None, shown: str):
    with pytest.raises(ExitCalled) as caught, fenced():
        leave(code)
    assert str(caught.value) == f"it called {shown}"


def test_other_errors_are_let_through():
    with pytest.raises(KeyError), fenced():
        raise KeyError("a")


def test_a_command_says_where_somebody_asked_python_to_end():
    with pytest.raises(LmflowError, match=r"test_user_code\.py:\d+ called sys.exit\(0\); raise an error instead"):
        cannot_exit(leave)(0)


def test_a_command_may_still_end_with_a_code_of_its_own():
    def stops() -> None:
        raise typer.Exit(3)

    with pytest.raises(typer.Exit):
        cannot_exit(stops)()


def test_the_commands_of_a_group():
    group = typer.Typer()
    group.command("leave")(leave)
    [command] = cannot_exit_within(group).registered_commands
    assert command.callback is not None
    assert command.callback.__name__ == "leave"
    with pytest.raises(LmflowError, match=r"called sys\.exit"):
        command.callback(0)
