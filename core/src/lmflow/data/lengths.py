"""Fitting token sequences to a length, and saying what that cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lmflow.data.sample import TokenSequence
from lmflow.errors import DataError

NAMED = 5
"""How many records a message names."""


@dataclass(frozen=True)
class LengthReport:
    """What became of the sequences: counts of sequences and tokens, and the first untrained ones by name."""

    total: int
    kept: int
    truncated: int
    dropped: int
    untrained: tuple[str, ...]
    untrained_count: int
    tokens: int
    trained_tokens: int
    longest: int
    limit: int | None

    def describe(self) -> str:
        """One line for the user: nothing is cut or dropped without being told."""
        share = self.trained_tokens / self.tokens
        text = f"{self.kept:,} sequences, {self.tokens:,} tokens, {share:.0%} of them trained"
        if self.truncated:
            text += f"; {self.truncated:,} of {self.total:,} cut at {self.limit} tokens (longest {self.longest:,})"
        if self.dropped:
            text += f"; {self.dropped:,} longer than {self.limit} tokens dropped"
        if self.untrained_count:
            text += f"; {self.untrained_count:,} without a trained token left out ({', '.join(self.untrained)})"
        return text


def fit_lengths(
    sequences: Sequence[TokenSequence], max_length: int | None, too_long: str
) -> tuple[list[TokenSequence], LengthReport]:
    """Sequences of at most `max_length` tokens, each with at least one target, and the report on it.

    Plain text (every token a target) is cut into pieces without loss. Longer samples are treated as `too_long`
    says: "truncate" on the right, "drop", or "error". Raises DataError for the last, and when no target remains.
    """
    fitted: list[TokenSequence] = []
    truncated = dropped = 0
    for sequence in sequences:
        if max_length is None or len(sequence) <= max_length:
            fitted.append(sequence)
        elif is_plain_text(sequence):
            fitted.extend(pieces(sequence, max_length))
        elif too_long == "error":
            raise DataError(
                f"{sequence.source}: {len(sequence)} tokens, more than {max_length}. Raise --data.max_length, or set "
                "--data.too_long truncate or drop."
            )
        elif too_long == "drop":
            dropped += 1
        else:
            truncated += 1
            fitted.append(sequence.cut(0, max_length))
    kept = [sequence for sequence in fitted if sequence.trained_tokens]
    untrained = [sequence.source for sequence in fitted if not sequence.trained_tokens]
    if not kept:
        raise DataError(_nothing_to_train(sequences, untrained, dropped, max_length))
    report = LengthReport(
        total=len(sequences),
        kept=len(kept),
        truncated=truncated,
        dropped=dropped,
        untrained=tuple(untrained[:NAMED]),
        untrained_count=len(untrained),
        tokens=sum(len(sequence) for sequence in kept),
        trained_tokens=sum(sequence.trained_tokens for sequence in kept),
        longest=max(len(sequence) for sequence in sequences),
        limit=max_length,
    )
    return kept, report


def is_plain_text(sequence: TokenSequence) -> bool:
    """Whether every token is a target, so that a cut loses no question its answer depends on."""
    return not sequence.extras and all(sequence.trained)


def pieces(sequence: TokenSequence, length: int) -> Iterator[TokenSequence]:
    """Consecutive pieces of at most `length` tokens that share one token, so that each token is a target once."""
    for start in range(0, len(sequence) - 1, length - 1):
        yield sequence.cut(start, start + length)


def _nothing_to_train(
    sequences: Sequence[TokenSequence], untrained: Sequence[str], dropped: int, limit: int | None
) -> str:
    names = ", ".join((untrained or [sequence.source for sequence in sequences])[:NAMED])
    if dropped and not untrained:
        return f"All {dropped} samples are longer than {limit} tokens ({names}, …). Raise --data.max_length."
    return (
        f"No token would be trained in any of {len(sequences)} samples ({names}). Training needs answers: an assistant "
        f"turn in each record, not cut off by --data.max_length ({limit})."
    )
