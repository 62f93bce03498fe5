"""Samples of one format as records of another, with what the other cannot hold found by reading them again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from lmflow.atomic import atomic_file
from lmflow.components import DataFormat
from lmflow.data.formats.unread import HELD, different, unread_fields
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Converted:
    """A sample as a record of the other format; what that lost, empty if nothing."""

    record: Mapping[str, Any]
    lost: tuple[str, ...]
    source: str
    unread: tuple[str, ...] = ()
    """Fields of the old record that its format does not read, so that the new one is without them."""


def convert(samples: Iterable[Sample], target: DataFormat, origin: DataFormat | None = None) -> Iterator[Converted]:
    """Each sample as a record of `target`, which is read again and compared; `origin` read the samples.

    Raises DataError naming the sample where `target` cannot hold it at all.
    """
    for sample in samples:
        record = target.record(sample)
        again = target.sample(record, sample.source)
        yield Converted(
            record,
            tuple(lost_parts(again, sample)),
            sample.source,
            tuple(unread_fields(sample, origin)) if origin else (),
        )


def lost_parts(again: Sample, sample: Sample) -> Iterator[str]:
    """What `again` does not say of what `sample` says, as a user calls it."""
    lost: dict[str, None] = {}
    for part in different(again, sample):
        dialogues = part in ("messages", "rejected")
        words = _lost_of_turns(getattr(again, part), getattr(sample, part), HELD[part]) if dialogues else [HELD[part]]
        lost |= dict.fromkeys(words)
    yield from lost


def _lost_of_turns(again: Sequence[Message], turns: Sequence[Message], whole: str) -> list[str]:
    """What of the turns is not there again: the whole of them, or what stands beside their texts."""
    if _without(again, *DETAILS) != _without(turns, *DETAILS):
        return [whole]
    others = {words: [each for each in DETAILS if each != words] for words in DETAILS}
    return [words for words, rest in others.items() if _without(again, *rest) != _without(turns, *rest)]


def _without(turns: Sequence[Message], *details: str) -> list[Message]:
    """The turns without what these words of DETAILS mean."""
    made = list(turns)
    for words in details:
        made = [DETAILS[words](turn) for turn in made]
    return made


def unlinked(turn: Message) -> Message:
    """The turn without what ties a tool's answer to its call."""
    calls = tuple({**call, "id": None} for call in turn.tool_calls)
    return replace(turn, tool_calls=calls, name=None, tool_call_id=None)


DETAILS: Mapping[str, Callable[[Message], Message]] = {
    "which tool and which call an answer belongs to": unlinked,
    "thoughts that stand beside an answer": lambda turn: replace(turn, thinking=None),
    "which answers are not to be learnt": lambda turn: replace(turn, is_target=True),
}
"""What stands beside the text of a turn, and the turn without it."""


def check_output(path: Path) -> None:
    """Raises DataError where records cannot be written to `path`."""
    if path.exists():
        raise DataError(f"{path} exists already; choose another file")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no directory {path.parent}")
    if Path(path.name.removesuffix(".gz")).suffix not in ENDINGS:
        raise DataError(f"{path}: JSON lines are written; let the name end with {', '.join(ENDINGS)}, or these and .gz")


def write_records(path: Path, records: Iterable[Mapping[str, Any]], declared: str | None = None) -> int:
    """Write records as JSON lines, or as LMFlow's object of the type `declared`; `.gz` compresses. Returns how many.

    The file is there when all of it is. Raises DataError where it cannot be written, or is there already.
    """
    check_output(path)
    try:
        with (
            atomic_file(path) as part,
            gzip.open(part, "wt", encoding="utf-8")
            if path.suffix == ".gz"
            else part.open("w", encoding="utf-8") as file,
        ):
            count = _write(file, records, declared)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    return count


def _write(file: IO[str], records: Iterable[Mapping[str, Any]], declared: str | None) -> int:
    """A record a line, between the brackets of LMFlow's object if there is one."""
    between = "\n" if declared is None else ",\n"
    count = 0
    if declared is not None:
        file.write(f'{{"type": {json.dumps(declared)}, "instances": [\n')
    for count, record in enumerate(records, 1):
        file.write((between if count > 1 else "") + json.dumps(record, ensure_ascii=False))
    file.write("\n" if declared is None else "\n]}\n")
    return count
