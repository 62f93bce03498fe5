"""Recognising what records mean: one format, or an error that says between which one has to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lmflow.components import DataFormat
from lmflow.data.formats.advice import way_to_read
from lmflow.data.formats.candidates import recognised_by
from lmflow.data.formats.unread import fields_read, listed
from lmflow.data.record import Record, describe
from lmflow.errors import DataError
from lmflow.recipe.values import validated

if TYPE_CHECKING:
    from lmflow.plugins import Plugins
    from lmflow.recipe.recipe import Recipe

LOOKED_AT = 32
"""Records looked at to recognise a format."""


@dataclass(frozen=True)
class Formats:
    """What records may mean: the format chosen, or None where it is to be recognised among the installed ones."""

    installed: Sequence[type[DataFormat]]
    chosen: DataFormat | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options for the one that is recognised."""

    def resolve(self, records: Sequence[Record]) -> DataFormat:
        """The format to read `records` with: the one chosen, or the only one that recognises them, with the options.

        A type that the file declares (LMFlow's container) decides. Raises DataError with the fields found and the
        formats installed when none or several recognise them, or when records differ in what they could be; and where
        the one recognised lacks one of the options. Raises RecipeError where it does not take an option's value.
        """
        if self.chosen is not None:
            return self.chosen
        looked_at = records[:LOOKED_AT]
        declared = looked_at[0].declared
        by_name = [each for each in self.installed if each.name == declared]
        found = by_name if declared else recognised_by(self.installed, looked_at)
        if declared and not found:
            raise DataError(_undeclared(declared, self.installed, looked_at[0]))
        if len(found) != 1:
            raise DataError(_unclear(found, self.installed, looked_at))
        if lacking := [key for key in self.options if key not in found[0].model_fields]:
            raise DataError(_lacks(found[0], lacking[0], self.installed, looked_at))
        return validated(found[0], self.options, "data")


def formats_of(recipe: Recipe, plugins: Plugins) -> Formats:
    """What the records of a recipe may mean."""
    return Formats(plugins.classes("data"), recipe.format, recipe.format_options)


def _unclear(found: Sequence[type[DataFormat]], formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> str:
    """Why no format, or no single one, reads the records."""
    first = records[0]
    known = [sorted(each.name for each in formats if each.recognises(record.fields)) for record in records]
    other = next((index for index, names in enumerate(known) if names != known[0]), None)
    if not found and known[0] and other is not None:
        what = f"looks like {', '.join(known[other])}" if known[other] else f"has {_fields(records[other])}"
        return (
            f"{records[other].source}: {what}, and {first.source} like {', '.join(known[0])}: one file must hold one "
            "format. Name it with --data NAME if it is one."
        )
    if not found and (way := way_to_read(records, formats)):
        return f"{first.source}: records with {_fields(first)} are of no format as they are; {way.describe()}."
    names = ", ".join(sorted(each.name for each in (found or formats)))
    how = f"could be any of {names}" if found else f"are none of the installed formats ({names})"
    return (
        f"{first.source}: records with {_fields(first)} {how}; name one with --data NAME, or say which field is which "
        "with --data.columns OURS=THEIRS."
    )


def _undeclared(declared: str, formats: Sequence[type[DataFormat]], first: Record) -> str:
    """That the type of LMFlow's container is none that is installed."""
    names = ", ".join(sorted(each.name for each in formats))
    return (
        f"{first.source}: its file says type {describe(declared)}, which is none of the installed formats ({names}); "
        "name one with --data NAME"
    )


def _lacks(found: type[DataFormat], key: str, formats: Sequence[type[DataFormat]], records: Sequence[Record]) -> str:
    """That the format recognised does not have an option that is given, and which one has."""
    having = ", ".join(sorted(each.name for each in formats if key in each.model_fields))
    by = listed(fields_read(found(), records)[0])
    return (
        f"data.{key}: {records[0].source} is recognised as {found.name} (by {by}), which has no such option; it is one "
        f"of {having or 'no installed format'}. Leave it out, or name the format with --data NAME."
    )


def _fields(record: Record) -> str:
    return listed(list(record.fields)) or "no field"
