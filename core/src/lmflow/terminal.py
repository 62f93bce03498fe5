"""Text from outside on a terminal: what would move its cursor, hide text or turn it round is shown, not obeyed.

Data, answers, names of files and what plugins say of themselves are written by others. Everything that commands print
goes through here.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

ACTED_ON = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)")
"""Control characters of both sets but tab and line feed, marks that turn the order of text, halves of characters."""


def printable(text: str) -> str:
    r"""The text with `\u001b` and the like for what a terminal acts on, which means the same in JSON."""
    return ACTED_ON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def write_out(text: str, *, exact: bool = False, flush: bool = False) -> None:
    """Write on standard output. With `exact`, a file or pipe gets every character as it is: what a model says, JSON."""
    sys.stdout.write(_encodable(text) if exact and not sys.stdout.isatty() else printable(text))
    if flush:
        sys.stdout.flush()


def write_error(text: str) -> None:
    """Write on standard error."""
    sys.stderr.write(printable(text))
    sys.stderr.flush()


def write_styled(text: str) -> None:
    """Write text with styles of our own on standard output; what is from outside in it has to be `printable`."""
    sys.stdout.write(text)


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console for tables and bars, to which brackets and `:names:` are text like other."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, **options)


def _encodable(text: str) -> str:
    """The text with `?` for halves of characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode()
