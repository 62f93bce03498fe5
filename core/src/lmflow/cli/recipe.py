"""`lmflow recipe`: the resolved recipe, where its values come from, and the JSON schema."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.options import resolve_scanned, scan
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import ResolvedRecipe, as_dict, dump
from lmflow.recipe.schema import schema
from lmflow.recipe.settings import TRACKERS

SHOW = "Print the resolved recipe as YAML."
EXPLAIN = "Print every value and where it came from."


def make_group(plugins: Plugins, arguments: Sequence[str]) -> tuple[typer.Typer, list[str]] | None:
    """The `recipe` commands for these arguments, and what is left for Typer; None if help was all they asked."""
    scanned = scan(arguments[1:], plugins, {})
    about = {"show": SHOW, "explain": EXPLAIN}
    if scanned.wants_help and arguments[0] in about:
        usage = f"lmflow recipe {arguments[0]} [RECIPE.yaml] [OPTIONS]"
        sys.stdout.write(recipe_help(usage, about[arguments[0]], (), scanned, plugins))
        return None
    group = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

    def command(name: str, text: str, show: Callable[[ResolvedRecipe], None]) -> None:
        def function(
            recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="A recipe file.")] = None,
        ) -> None:
            show(resolve_scanned(scanned, plugins, recipe))

        group.command(name, help=text)(function)

    command("show", SHOW, lambda resolved: _write(dump(resolved.recipe)))
    command("explain", EXPLAIN, lambda resolved: _write(explain(resolved)))

    @group.command("schema", help="Print the JSON schema of recipe files, for editors.")
    def print_schema() -> None:
        import json

        _write(json.dumps(schema(plugins), indent=2) + "\n")

    return group, [*arguments[:1], *scanned.rest]


def explain(resolved: ResolvedRecipe) -> str:
    """One line per value: path, value, origin."""
    rows = []
    for section, values in as_dict(resolved.recipe).items():
        for path, value in _paths(section, values):
            rows.append((path, _shown(value), str(resolved.origins.get(path, "default"))))
    widths = [min(max(len(row[column]) for row in rows), 44) for column in (0, 1)]
    return "".join(f"{path:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n" for path, value, origin in rows)


def _paths(section: str, values: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """Dotted paths and values; trackers have a section each."""
    for key, value in (values or {}).items():
        if section == TRACKERS:
            yield from _paths(f"{TRACKERS}.{key}", {"name": key, **value})
        else:
            yield f"{section}.{key}", value


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _write(text: str) -> None:
    sys.stdout.write(text)
