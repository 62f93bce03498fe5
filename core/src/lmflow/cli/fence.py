"""Commands of a group that nothing they call can end as if all had gone well."""

from __future__ import annotations

import typer

from lmflow.plugins.user_code import cannot_exit


def cannot_exit_within(group: typer.Typer) -> typer.Typer:
    """The group, in whose commands `sys.exit` is an error; see `cannot_exit`."""
    for each in group.registered_commands:
        if each.callback is not None:
            each.callback = cannot_exit(each.callback)
    return group
