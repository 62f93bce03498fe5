"""Slot `data`: what a record means."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lmflow.components.base import Component
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.data.sample import Sample


class DataFormat(Component):
    """Slot `data`: what a record means. Where records lie, how long samples are and packing are no format's options."""

    reserved: ClassVar[tuple[str, ...]] = (
        "path",
        "subset",
        "split",
        "mix",
        "columns",
        "ignore",
        "on_bad_record",
        "streaming",
        "limit",
        "max_length",
        "too_long",
        "packing",
        "validation",
        "template",
        "template_arguments",
        "special_tokens",
        "train_on",
    )
    """Options of the section `data` for all formats (`DataOptions`); a format's own stand beside them in it."""
    reward: ClassVar[str | None] = None
    """Name of the reward that belongs to this data, used when the recipe names none."""
    includes: ClassVar[tuple[str, ...]] = ()
    """Formats whose records this one reads too: a file of both is its own, and it is preferred to them."""

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Whether a record looks like this format; used when the recipe names no format."""
        return False

    def in_folder(self, folder: Path) -> DataFormat:
        """The format for the records of files in `folder`, which their relative paths (of images) begin at.

        Asked once for each place that data is read from; a format whose records name no files is the same everywhere.
        """
        return self

    @abstractmethod
    def sample(self, record: Mapping[str, Any], source: str) -> Sample:
        """Turn one record into a sample. Raises DataError naming `source`, the field and what was expected."""

    def record(self, sample: Sample) -> Mapping[str, Any]:
        """The record that `sample` reads as this one, for `lmflow data convert`.

        What it leaves out is noticed: the record is read again and compared. Raises DataError naming the sample where
        the format cannot hold it; the default cannot be written at all.
        """
        raise DataError(f"{sample.source}: format {self.name} can be read, not written")

    def embedded(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] | None:
        """Training and held-out records that the format itself brings, used when no path is given."""
        return None
