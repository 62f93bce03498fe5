"""`lmflow recipe`: the resolved recipe, where its values come from, and the JSON schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmflow.cli.help import recipe_help
from lmflow.cli.options import resolve_scanned, scan
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import ResolvedRecipe, as_dict, dump
from lmflow.recipe.schema import schema
from lmflow.recipe.settings import STAGES, TRACKERS, Origin
from lmflow.recipe.stages import StagedRecipe, dump_stages
from lmflow.terminal import write_out, write_styled

SHOW = "Print the resolved recipe as YAML."
EXPLAIN = "Print every value and where it came from."


def make_group(plugins: Plugins, arguments: Sequence[str]) -> tuple[typer.Typer, list[str]] | None:
    """The `recipe` commands for these arguments, and what is left for Typer; None if help was all they asked."""
    scanned = scan(arguments[1:], plugins, {})
    about = {"show": SHOW, "explain": EXPLAIN}
    if scanned.wants_help and arguments[0] in about:
        usage = f"lmflow recipe {arguments[0]} [RECIPE.yaml] [OPTIONS]"
        write_styled(recipe_help(usage, about[arguments[0]], (), scanned, plugins))
        return None
    group = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

    def command(name: str, text: str, show: Callable[[ResolvedRecipe | StagedRecipe], str]) -> None:
        def function(
            recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="A recipe file.")] = None,
        ) -> None:
            _write(show(resolve_scanned(scanned, plugins, recipe)))

        group.command(name, help=text)(function)

    command("show", SHOW, show)
    command("explain", EXPLAIN, explain)

    @group.command("schema", help="Print the JSON schema of recipe files, for editors.")
    def print_schema() -> None:
        from lmflow.run_files import to_json

        _write(to_json(schema(plugins), indent=2) + "\n")

    return group, [*arguments[:1], *scanned.rest]


def show(resolved: ResolvedRecipe | StagedRecipe) -> str:
    """The recipe, or its stages, as YAML."""
    return dump_stages(resolved) if isinstance(resolved, StagedRecipe) else dump(resolved.recipe)


def explain(resolved: ResolvedRecipe | StagedRecipe) -> str:
    """One line per value: path, value, origin."""
    if isinstance(resolved, StagedRecipe):
        parts = [(f"{STAGES}.{stage.name}.", stage.as_dict(), stage.origins) for stage in resolved.stages]
    else:
        parts = [("", as_dict(resolved.recipe), resolved.origins)]
    rows = [row for part in parts for row in _rows(*part)]
    widths = [min(max(len(row[column]) for row in rows), 44) for column in (0, 1)]
    return "".join(f"{path:<{widths[0]}}  {value:<{widths[1]}}  {origin}\n" for path, value, origin in rows)


def _rows(prefix: str, sections: Mapping[str, Any], origins: Mapping[str, Origin]) -> Iterator[tuple[str, str, str]]:
    """Path, value and origin of every value."""
    for section, values in sections.items():
        for path, value in _paths(section, values):
            yield f"{prefix}{path}", _shown(value), str(origins.get(path, "default"))


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
    write_out(text, exact=True)
