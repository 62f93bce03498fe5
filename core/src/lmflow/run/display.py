"""What a run is shown on, and the display that shows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Display(Protocol):
    """Receives what a run says; a terminal, a notebook, or nothing."""

    def plan(self, total: int, unit: str) -> None:
        """The whole run is `total` units of work."""

    def advance_plan(self, amount: int = 1) -> None:
        """So much of the planned work is done."""

    def phase(self, name: str, total: int | None) -> None:
        """A phase begins, and the one before ends; `total` is None when unknown."""

    def advance(self, amount: int = 1) -> None:
        """So much of the current phase is done."""

    def count(self, what: str, done: int, total: int) -> None:
        """So much of something long is done, whatever the phase: "samples tokenised"."""

    def update(self, metrics: Mapping[str, Any]) -> None:
        """The latest metrics: step, loss, reward, …"""

    def note(self, text: str) -> None:
        """A line the user should read."""

    def close(self) -> None:
        """Nothing more will be shown; the terminal is left as it was found."""


class Silent:
    """Shows nothing."""

    def plan(self, total: int, unit: str) -> None:
        """Show nothing."""

    def advance_plan(self, amount: int = 1) -> None:
        """Show nothing."""

    def phase(self, name: str, total: int | None) -> None:
        """Show nothing."""

    def advance(self, amount: int = 1) -> None:
        """Show nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Show nothing."""

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""
