"""The plugins a command works with."""

from __future__ import annotations

import difflib

from lmflow.cli import print_error
from lmflow.distributed.environment import report_file
from lmflow.plugins import Plugins, disabled_by_environment, load_plugins, same_name


def installed_plugins(*, quiet: bool = False) -> Plugins:
    """The installed plugins; on standard error a line for each broken one, and for names that disable nothing.

    A process that the command started says nothing: the command has.
    """
    plugins = load_plugins()
    for line in [] if quiet or report_file() else [*_broken(plugins), *_disabling_nothing(plugins)]:
        print_error(line, label="warning: ")
    return plugins


def _broken(plugins: Plugins) -> list[str]:
    lines = []
    for each in plugins.broken:
        see = f"lmflow plugins show {each.distribution}"
        lines.append(f"plugin {each.distribution} is broken and left out ({each.reason}); see {see}")
    return lines


def _disabling_nothing(plugins: Plugins) -> list[str]:
    lines = []
    for name in disabled_by_environment():
        if not any(same_name(name, each.distribution) for each in plugins.disabled):
            near = difflib.get_close_matches(name, plugins.distributions(), n=1)
            hint = f"; did you mean {near[0]}?" if near else "; lmflow plugins lists what is installed"
            lines.append(f"there is no plugin {name} to disable{hint}")
    return lines
