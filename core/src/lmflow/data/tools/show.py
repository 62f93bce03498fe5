"""Token sequences as people read them: the text of each token, whether it is trained, and where it lies in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmflow.data.lengths import length_limit, pieces, policy_of
from lmflow.data.packing import pack_rows
from lmflow.data.sample import Sample, TokenSequence
from lmflow.data.token_findings import TextModel, answer_names, target_runs
from lmflow.recipe.sections.data import DataOptions
from lmflow.terminal import printable

BROKEN = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 8
"""Tokens that may make up one character together; what is longer is no text."""
NEWLINE = "↵"
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Characters a terminal acts on instead of showing them, and their symbols: data must not repaint what is trained."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The shortest run of tokens that is text: mostly one token, several where a character is split among them."""

    text: str
    ids: tuple[int, ...]
    is_target: bool
    position: int
    """Of its first token."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence lies in a packed row."""

    source: str
    start: int
    length: int


def shown_sequences(model: TextModel, sample: Sample, options: DataOptions) -> list[tuple[TokenSequence, str]]:
    """A sample's sequences as they are trained, each with a note.

    It says which answers of several the sequence trains, and what the length limit does to it.
    """
    [sequences] = model.encode_all([sample], options.train_on)
    runs = [len(list(target_runs(sequence))) for sequence in sequences]
    names = [", ".join(filter(None, each)) for each in answer_names(sample, runs)]
    notes = [name or f"sequence {number} of {len(sequences)}" for number, name in enumerate(names, 1)]
    limit = length_limit(model.context_length, options.max_length)
    fitted = (fitted_to(sequence, limit, options.too_long) for sequence in sequences)
    return [
        (each, ", ".join(part for part in (note if len(sequences) > 1 else "", cut) if part))
        for note, some in zip(notes, fitted, strict=True)
        for each, cut in some
    ]


def fitted_to(sequence: TokenSequence, limit: int | None, policy: str) -> list[tuple[TokenSequence, str]]:
    """What a run trains on in place of a sequence, and what it does to it; what is left out is shown, untrained."""
    if limit is None or len(sequence) <= limit:
        return [(sequence, "")]
    policy = policy_of(sequence, policy)
    if policy == "split":
        some = list(pieces(sequence, limit))
        return [(piece, f"piece {number} of {len(some)}") for number, piece in enumerate(some, 1)]
    told = f"longer than {limit:,} tokens"
    if policy == "truncate":
        return [(sequence.cut(0, limit), f"{told}: {len(sequence) - limit:,} are cut off")]
    what = "left out" if policy == "skip" else "which stops a run"
    return [(replace(sequence, loss_mask=[False] * len(sequence)), f"{told}: {what}")]


def pieces_of(tokenizer: Any, sequence: TokenSequence) -> Iterator[Piece]:
    """The text of a sequence token by token, special tokens by their names."""
    start = 0
    while start < len(sequence):
        end = start + 1
        while True:
            text = tokenizer.decode(list(sequence.ids[start:end]), skip_special_tokens=False)
            whole = not text.endswith(BROKEN)
            same = end < len(sequence) and sequence.loss_mask[end] == sequence.loss_mask[start]
            if whole or not same or end - start == LONGEST_CHARACTER:
                break
            end += 1
        if not whole:  # not a part of a character that goes on: each byte is shown by itself
            end = start + 1
            text = tokenizer.convert_ids_to_tokens(int(sequence.ids[start]))
        yield Piece(text, tuple(sequence.ids[start:end]), bool(sequence.loss_mask[start]), start)
        start = end


def visible(text: str) -> str:
    """The text with symbols for what a terminal would act on."""
    return printable(text.translate(CONTROLS))


def plain(pieces: Sequence[Piece]) -> str:
    """The text with « and » around what is trained, for where there is no colour."""
    parts, inside = [], False
    for piece in pieces:
        if piece.is_target != inside:
            parts.append("«" if piece.is_target else "»")
            inside = piece.is_target
        parts.append(visible(piece.text))
    return "".join(parts) + ("»" if inside else "")


def table(pieces: Sequence[Piece]) -> Iterator[str]:
    """A line for each piece: position, whether it is trained, ids, text."""
    for piece in pieces:
        ids = " ".join(map(str, piece.ids))
        yield f"{piece.position:>6}  {'trained' if piece.is_target else '':7}  {ids:<12}  {piece.text!r}"


def packed_layout(sequences: Sequence[TokenSequence], max_length: int) -> list[list[Place]]:
    """Where each of `sequences` lies when they are packed into rows of `max_length` tokens."""
    layout = []
    for row in pack_rows([len(sequence) for sequence in sequences], max_length):
        places: list[Place] = []
        for index in row:
            start = places[-1].start + places[-1].length if places else 0
            places.append(Place(sequences[index].source, start, len(sequences[index])))
        layout.append(places)
    return layout


def shown_as_data(
    tokenizer: Any, shown: Sequence[tuple[TokenSequence, str]], layout: Sequence[Sequence[Place]] | None
) -> dict[str, Any]:
    """What `lmflow data show` shows, as plain data: every token, and the rows if there are any."""
    sequences = [
        {
            "source": sequence.source,
            "answers": answers,
            "tokens": len(sequence),
            "num_targets": sequence.num_targets,
            "pieces": [asdict(piece) for piece in pieces_of(tokenizer, sequence)],
        }
        for sequence, answers in shown
    ]
    return {"sequences": sequences, "rows": layout and [[asdict(place) for place in row] for row in layout]}
