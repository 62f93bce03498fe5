"""Help for commands that take a recipe's options: the command's own, then a section per chosen component.

Typer's panels would do, but drawing them takes longer than all else that help does together.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from lmflow.cli.options import Scanned
from lmflow.components import Component
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import chosen_components
from lmflow.recipe.settings import RUN_SCOPE, TRACKERS, Scope
from lmflow.recipe.values import option_text, option_type
from lmflow.terminal import printable

Row = tuple[str, str]
"""An option with what it takes, and what it means."""


def recipe_help(
    usage: str, text: str, own: Sequence[Row], scanned: Scanned, plugins: Plugins, scope: Scope = RUN_SCOPE
) -> str:
    """The whole help of a command: `own` are its fixed options, the rest follows from the components chosen."""
    file = scanned.recipe_file if scope is RUN_SCOPE else None
    chosen = chosen_components(plugins, file if file and file.is_file() else None, scanned.settings, scope)
    sections: list[tuple[str, Sequence[Row]]] = [("Options", [*own, ("--help", "Show this and exit.")])]
    sections.append(("Components", list(_choices(plugins, scope))))
    plain = dict(_plain_sections(chosen, scope))
    for name in dict.fromkeys((*scope.slots, *chosen, *plain)):
        sections += [plain[name]] if name in plain else []
        sections += [_component_section(name, chosen[name], scope)] if name in chosen else []
    width = min(shutil.get_terminal_size().columns, 120)
    body = "".join(_section(title, rows, width) for title, rows in sections if rows)
    return f"\nUsage: {usage}\n\n{textwrap.fill(text, width)}\n{body}\n"


def _component_section(name: str, component: type[Component], scope: Scope) -> tuple[str, Sequence[Row]]:
    """Heading and options of a chosen component."""
    kind = "tracker" if name.startswith(f"{TRACKERS}.") else name
    rows = [row for row in _rows(name, component, {}) if not _is_hidden(row, scope)]
    return f"{kind} {component.name}: {_first_line(component)}", rows


def _plain_sections(
    chosen: Mapping[str, type[Component]], scope: Scope
) -> Iterator[tuple[str, tuple[str, Sequence[Row]]]]:
    """Name, heading and options of each plain section, with the defaults that the components of a run prefer."""
    paths = {path: value for each in chosen.values() for path, value in each.preferred.items()}
    for name, owner in scope.sections.items():
        start = f"{name}."
        preferred = scope.preferred_in(name)
        if scope is RUN_SCOPE:
            preferred |= {path.removeprefix(start): value for path, value in paths.items() if path.startswith(start)}
        aliases = {path.removeprefix(start) for path in scope.aliases.values() if path.startswith(start)}
        shown_as_such = aliases >= owner.model_fields.keys()
        rows = [] if shown_as_such else [row for row in _rows(name, owner, preferred) if not _is_hidden(row, scope)]
        yield name, (f"{name}: {_first_line(owner)}", rows)


def _first_line(owner: type[BaseModel]) -> str:
    return (inspect.getdoc(owner) or "").partition("\n")[0]


def _is_hidden(row: Row, scope: Scope) -> bool:
    return row[0].split()[0].removeprefix("--") in scope.hidden


def _choices(plugins: Plugins, scope: Scope) -> Iterator[Row]:
    for slot in scope.slots:
        yield f"--{slot} NAME", f"One of {', '.join(sorted(plugins.offers(slot)))}."
    if scope.trackers:
        yield f"--{TRACKERS} NAME,…", f"Any of {', '.join(sorted(plugins.offers('tracker'))) or 'none installed'}."


def _rows(section: str, owner: type[BaseModel], preferred: Mapping[str, Any]) -> Iterator[Row]:
    for key, info in owner.model_fields.items():
        default = preferred.get(key, None if info.is_required() else info.get_default(call_default_factory=True))
        empty = default is None or default in ([], (), {})
        note = " [required]" if info.is_required() else "" if empty else f" [default: {option_text(default)}]"
        yield f"--{section}.{key} {option_type(info)}", f"{info.description}{note}"


def _section(title: str, rows: Sequence[Row], width: int) -> str:
    """A heading and its options in two columns; a long option pushes its text to the next line."""
    heading = f"\033[1m{printable(title)}\033[0m" if sys.stdout.isatty() else printable(title)
    rows = [(printable(left), printable(right)) for left, right in rows]
    column = min(max(len(left) for left, _ in rows) + 4, 42)
    lines = [f"\n{heading}"]
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(width - column, 30)) or [""]
        if len(left) + 4 > column:
            lines.append(f"  {left}")
        else:
            lines.append(f"  {left:<{column - 2}}{wrapped.pop(0)}")
        lines += [" " * column + line for line in wrapped]
    return "\n".join(lines) + "\n"
