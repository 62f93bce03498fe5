"""What reads records that look like no format: options found by trying them on the first records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product

from lmflow.components import DataFormat
from lmflow.data.columns import renamed, without
from lmflow.data.formats.candidates import recognised_by
from lmflow.data.formats.labels import LABELS, read_record
from lmflow.data.formats.unread import fields_read, listed
from lmflow.data.record import Record

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "instruction", "input", "inputs", "user", "human", "problem", "request", "task"),
    "completion": (
        *("answer", "answers", "response", "responses", "output", "outputs", "assistant", "bot", "gpt", "reply"),
        *("solution", "target", "targets"),
    ),
    "instruction": ("question", "query", "prompt", "task"),
    "input": ("context", "passage", "document", "inputs"),
    "output": ("response", "answer", "completion", "target", "outputs"),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns", "text"),
    "chosen": ("preferred", "accepted", "better", "winner", "chosen_response", "conversation", "dialogue", "text"),
    "rejected": ("dispreferred", "worse", "loser", "rejected_response"),
    "text": ("content", "body", "document", "article", "passage", "conversation", "dialogue", "dialog", "chat", "code"),
}
"""Fields of the formats, and what else sets call them; the likelier names first."""
SHAPES = (
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("prompt", "chosen", "rejected"),
    ("messages",),
    ("chosen", "rejected"),
    ("text",),
)
"""Fields that make up a record together."""
MOST = 300
"""Ways to call fields that are tried."""


@dataclass(frozen=True, slots=True)
class Way:
    """Options that read the records, and what they do."""

    options: tuple[str, ...]
    format: str
    read: tuple[str, ...]
    unread: tuple[str, ...]
    is_text: bool = False
    """Whether it is read as plain text."""

    def describe(self) -> str:
        """The options, and what they do."""
        what = f"{self.format}, of which all is trained" if self.is_text else self.format
        rest = f" (not read: {listed(self.unread)})" if self.unread else ""
        return f"{' '.join(self.options)} reads them as {what}{rest}"


def way_to_read(records: Sequence[Record], formats: Sequence[type[DataFormat]]) -> Way | None:
    """The options that read most fields of the records, each of which they read; None where none is known to.

    Labels that stand in the way of all options are left out by another.
    """
    labels = [field for field in LABELS if any(field in record.fields for record in records)]
    for ignored in [[], labels] if labels else [[]]:
        rest = [each for each in without(records, ignored) if isinstance(each, Record)]
        first = (f"--data.ignore {','.join(ignored)}",) if ignored else ()
        tried = (_tried(rest, columns, formats, first) for columns in islice(_columns(rest), MOST))
        ways = [way for way in tried if way is not None]
        ways += [way for each in formats if (way := _named(rest, each, first))]
        if ways:
            return max(ways, key=lambda way: len(way.read))  # the first of equals, which is the likelier
    return None


def _columns(records: Sequence[Record]) -> Iterator[dict[str, str]]:
    """Ways to call the fields that all records have, those first that call the fewest otherwise."""
    fields = [field for field in records[0].fields if all(field in record.fields for record in records)]
    found = []
    for shape in SHAPES:
        names = [(ours,) if ours in fields else _names_of(ours, fields) for ours in shape]
        for theirs in product(*names):
            columns = {mine: name for mine, name in zip(shape, theirs, strict=True) if name and name != mine}
            if len({*theirs} - {""}) == len([name for name in theirs if name]):
                found.append(columns)
    yield from sorted(found, key=len)


def _names_of(ours: str, fields: Sequence[str]) -> tuple[str, ...]:
    """Fields of the records that may be meant by ours; "" stands for none of them."""
    return (*(theirs for theirs in OTHER_NAMES[ours] if theirs in fields), "")


def _tried(
    records: Sequence[Record], columns: Mapping[str, str], formats: Sequence[type[DataFormat]], first: tuple[str, ...]
) -> Way | None:
    """Reading the records with fields called otherwise; None where one of them cannot be read so."""
    called = [each for each in renamed(records, columns) if isinstance(each, Record)]
    found = recognised_by(formats, called)
    if len(found) != 1:
        return None
    option = f"--data.columns {','.join(f'{ours}={theirs}' for ours, theirs in columns.items())}"
    return _read(called, found[0](), (*first, option) if columns else first)


def _named(records: Sequence[Record], kind: type[DataFormat], first: tuple[str, ...]) -> Way | None:
    """Reading the records as a format that has to be named; None where it leaves a field of them unread."""
    way = _read(records, kind(), (*first, f"--data {kind.name}"))
    return None if way is None or way.unread else way


def _read(records: Sequence[Record], kind: DataFormat, options: tuple[str, ...]) -> Way | None:
    try:
        samples = [read_record(kind, record) for record in records]
        read, unread = fields_read(kind, records)
    except Exception:  # a plugin's format may fail in other ways for records that are not its own
        return None
    is_text = all(not sample.templated and len(sample.messages) == 1 for sample in samples)
    return Way(options, kind.name, read, unread, is_text) if read else None
