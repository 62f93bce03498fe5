"""A command of a plugin's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmflow.plugins import Plugins


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a plugin's own, called as `lmflow NAME`; the core's commands keep their names."""

    name: str
    """What follows `lmflow` to call it."""
    help: str
    """One sentence, for `lmflow plugins`."""
    make: Callable[[Plugins, Sequence[str]], tuple[Callable[..., None], list[str]] | None]
    """Given the plugins and the arguments after the name: a function for Typer to call, and the arguments left for it
    to parse; None if help was all they asked for, and was shown."""
