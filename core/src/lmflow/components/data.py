"""Slot `data`: what a record means."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lmflow.components.base import Component
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.data.sample import Sample


class DataFormat(Component):
    """Slot `data`: what a record means. The fields here are common to all formats."""

    reward: ClassVar[str | None] = None
    """Name of the reward that belongs to this data, used when the recipe names none."""
    includes: ClassVar[tuple[str, ...]] = ()
    """Formats whose records this one reads too: a file of both is its own, and it is preferred to them."""

    path: str | None = Field(
        None, description="File or directory of records (JSON, JSON lines, CSV, Parquet, text), or a hub name."
    )
    mix: dict[str, float] = Field(
        {},
        description="Several of them, each with how often its records come in an epoch: a.jsonl=1,b.csv=0.5.",
    )
    columns: dict[str, str] = Field(
        {}, description="Fields that are called otherwise in the file: OURS=THEIRS,OURS=THEIRS."
    )
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="What to do with records that cannot be used: stop, or leave them out and count them."
    )
    streaming: bool | None = Field(
        None, description="Read samples from disk when they are needed; if unset, those of more than 256 MB."
    )
    max_length: int | None = Field(None, gt=1, description="Longest sample, in tokens; the model's context if unset.")
    too_long: Literal["auto", "error", "truncate", "skip", "split"] = Field(
        "auto", description="What becomes of longer samples; auto splits plain text and truncates everything else."
    )
    packing: bool = Field(False, description="Fill each row with several samples; none sees another.")
    validation: float | str = Field(
        0.05, description="Share of the records held out for evaluation, or the path of a file that holds them."
    )
    limit: int | None = Field(None, gt=0, description="Use only the first so many records.")
    template: str | None = Field(
        None, description="Chat template, by name (chatml, llama3, …) or a Jinja file; the model's own if unset."
    )
    train_on: str = Field(
        "assistant", pattern="^(assistant|last|all)$", description="Tokens with a loss: answers, the last one, or all."
    )

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Whether a record looks like this format; used when the recipe names no format."""
        return False

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
