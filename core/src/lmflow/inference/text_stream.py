"""Turning sampled tokens into text as they come, and finding where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a decoder shows for bytes that are no whole character yet."""


class TextStream:
    """Text of one completion as its tokens are sampled; what has been given out never changes.

    Held back are characters of which only some bytes are there, and what may be the beginning of a stop string.
    Only the last few tokens are decoded each time: those since the text last ended with a whole character, after the
    ones before them, because some tokenizers render a token by what precedes it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._context_start = 0
        self._context_end = 0
        self._context = ""
        self._settled = ""
        self._final = 0
        self._taken = 0
        self.text = ""
        """All text so far, whole characters only, cut before a stop string."""
        self.stopped = False

    def add(self, token: int) -> None:
        """Follow the text by one token."""
        self._ids.append(token)
        fresh = self._decode(self._ids[self._context_start :])[len(self._context) :]
        text = self._settled + fresh.rstrip(REPLACEMENT)
        if fresh and not fresh.endswith(REPLACEMENT):
            self._settled = text
            self._context_start, self._context_end = self._context_end, len(self._ids)
            self._context = self._decode(self._ids[self._context_start :])
        self._extend(text)
        self._final = len(self.text) - (0 if self.stopped else self._possible_stop())

    def finish(self) -> None:
        """No more tokens come: nothing is held back, and the text is that of all tokens decoded at once."""
        if not self.stopped:
            whole = self._decode(self._ids)
            self._extend(whole if whole.startswith(self.text) else self.text)
        self._final = len(self.text)

    def take(self) -> str:
        """Text that has become final since the last call, often none."""
        piece = self.text[self._taken : self._final]
        self._taken = max(self._taken, self._final)
        return piece

    def _extend(self, text: str) -> None:
        """Make `text` the text so far, looking for stop strings where it is new."""
        searched = len(self.text)
        places = [text.find(stop, max(0, searched - len(stop) + 1)) for stop in self._stops]
        found = [place for place in places if place >= 0]
        self.stopped = bool(found)
        self.text = text[: min(found)] if found else text

    def _possible_stop(self) -> int:
        """Length of the longest ending of the text that begins a stop string."""
        sizes = (size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size]))
        return max(sizes, default=0)
