"""The plugins a command works with."""

from __future__ import annotations

import difflib

from lmflow.cli.output import print_error
from lmflow.distributed.environment import report_file
from lmflow.plugins import Plugins, count_broken, disabled_by_environment, load_plugins, same_name


def installed_plugins(*, quiet: bool = False) -> Plugins:
    """The installed plugins; on standard error a line about broken ones, and one for each name that disables nothing.

    A process that the command started says nothing: the command has.
    """
    plugins = load_plugins()
    for line in [] if quiet or report_file() else [*_broken(plugins), *_disabling_nothing(plugins)]:
        print_error(line, label="warning: ")
    return plugins


def _broken(plugins: Plugins) -> list[str]:
    """One line, however many are broken: the error that follows is what the user has to see."""
    if len(plugins.broken) > 1:
        return [f"{count_broken(plugins.broken)} and left out; see lmflow plugins"]
    return [
        f"plugin {each.distribution} is broken and left out ({shortened(each.reason)}); "
        f"see lmflow plugins show {each.distribution}"
        for each in plugins.broken
    ]


def shortened(reason: str, most: int = 240) -> str:
    """A reason that leaves the line readable."""
    return reason if len(reason) <= most else f"{reason[:most]}…"


def _disabling_nothing(plugins: Plugins) -> list[str]:
    lines = []
    for name in disabled_by_environment():
        if not any(same_name(name, each.distribution) for each in plugins.disabled):
            near = difflib.get_close_matches(name, plugins.distributions(), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; lmflow plugins lists what is installed"
            lines.append(f"there is no plugin {name} to disable{hint}")
    return lines
