"""Turning drawn tokens into text as they come, and finding where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a decoder shows for bytes that are no whole character yet."""


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string in it, None if there is none."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(found)] if found else None


class TextStream:
    """Text of one completion as its tokens are drawn; what has been given out is never taken back.

    Held back are characters of which only some bytes are there, and what may be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._given = 0
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that has become final with this token, often none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        cut = cut_at_stop(text, self._stops)
        if cut is not None:
            self.stopped = True
            return self._give(cut)
        return self._give(text.rstrip(REPLACEMENT)[: len(text) - self._possible_stop(text)])

    def finish(self) -> str:
        """What was held back, once no more tokens come."""
        return "" if self.stopped else self._give(self._decode(self._ids))

    def _give(self, final: str) -> str:
        piece = final[self._given :]
        self._given = max(self._given, len(final))
        return piece

    def _possible_stop(self, text: str) -> int:
        """Length of the longest ending of `text` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
