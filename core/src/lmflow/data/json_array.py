"""The elements of a JSON array one after the other, so that a file need not fit into memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from lmflow.data.json_values import JsonValues

BLOCK = 1 << 20
LONGEST = 1 << 28
"""Characters of a value; a longer one is no record."""
SPACE = " \t\r\n"
AFTER = (*SPACE, ",", "]")
LONGEST_WORD = len("-Infinity")


def iterate_array(stream: IO[bytes]) -> Iterator[tuple[Any, str | None]]:
    """The elements of the array that is in a stream of UTF-8, each with a key that stands twice in it, if one does.

    Raises json.JSONDecodeError.
    """
    reader = JsonReader(stream)
    for value in reader.elements():
        yield value, reader.repeated
    reader.end()


class JsonReader:
    """Text that grows as it is needed, and how many lines have been read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._rest = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self._lines = self._column = 0
        """How many whole lines have been let go, and how many characters of the line after them."""
        self._done = False
        self._json = JsonValues()

    @property
    def repeated(self) -> str | None:
        """A key that an object of the last value has twice, with different values."""
        return self._json.repeated

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._grow(BLOCK):
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Read over a character that has to come next."""
        if self.next() != character:
            raise self.error(f"Expecting '{character}'" + (" or ','" if character in "]}" else ""))
        self._at += 1

    def elements(self) -> Iterator[Any]:
        """The values of the array that comes next."""
        self.take("[")
        if self.next() != "]":
            yield self.value()
            while self.next() == ",":
                self.take(",")
                yield self.value()
        self.take("]")

    def keys(self) -> Iterator[str]:
        """The keys of the object that comes next, each where its value is to be read before the next one."""
        self.take("{")
        if self.next() != "}":
            yield self._key()
            while self.next() == ",":
                self.take(",")
                yield self._key()
        self.take("}")

    def _key(self) -> str:
        if self.next() != '"':
            raise self.error("Expecting property name enclosed in double quotes")
        key: str = self.value()
        self.take(":")
        return key

    def end(self) -> None:
        """Raise json.JSONDecodeError where more follows."""
        if self.next():
            raise self.error("Extra data")

    def value(self) -> Any:
        """The value that comes next."""
        self.next()
        more = BLOCK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Not the error itself: with its traceback it would hold the whole text until the collector comes by.
                failure: tuple[str, int] | None = (error.msg, error.pos)
                if not self._may_be_cut(error):
                    raise self.error(error.msg, error.pos) from None
            else:
                if not isinstance(value, int | float) or self._text[end : end + 1] in AFTER:
                    self._at = end
                    return value
                failure = None  # a number may go on
            if len(self._text) - self._at > LONGEST:
                raise self.error(f"a value of more than {LONGEST >> 20} MB, which no record has")
            if not self._grow(more):
                if failure is None:
                    self._at = end
                    return value
                raise self.error(*failure)
            more *= 2  # so that a value of any length is parsed a few times only

    def error(self, message: str, at: int | None = None) -> json.JSONDecodeError:
        """What is wrong at this place, or at another of the text at hand."""
        made = json.JSONDecodeError(message, self._text, self._at if at is None else at)
        made.colno += self._column if made.lineno == 1 else 0
        made.lineno += self._lines
        return made

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it: a string without an end, or a fault within a word of the end."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - LONGEST_WORD

    def _grow(self, size: int) -> bool:
        """Read on; False at the end. What has been used is let go."""
        if self._done:
            return False
        block = self._rest.read(size)
        self._done = not block
        used = self._text[: self._at]
        self._column = len(used) - used.rfind("\n") - 1 + (0 if "\n" in used else self._column)
        self._lines += used.count("\n")
        self._text, self._at = self._text[self._at :], 0
        try:
            self._text += self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            self._text += error.object[: error.start].decode()
            found = f"not UTF-8 (byte {error.object[error.start]:#04x}); convert the file"
            raise self.error(found, len(self._text)) from None
        return True
