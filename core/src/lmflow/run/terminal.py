"""Progress as a terminal, a file or a notebook shows it, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lmflow.run.display import Display, Silent
from lmflow.terminal import make_console, printable

if TYPE_CHECKING:
    from rich.console import Console

LIVE = ("step", "iteration", "loss", "reward_mean", "heldout_reward", "eval_loss", "tokens_per_second")
LABELS = {
    "reward_mean": "reward",
    "heldout_reward": "held-out reward",
    "eval_loss": "held-out loss",
    "tokens_per_second": "tokens/s",
}
SECONDS_BETWEEN_LINES = 5.0


def make_run_display(*, silent: bool) -> Display:
    """Where a run is shown: a live panel on a terminal, plain lines elsewhere, nowhere if silent."""
    return Silent() if silent else LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


def make_progress(*, quiet: bool) -> Display:
    """Bars on a terminal, lines elsewhere, both on standard error; nothing if quiet."""
    return Silent() if quiet else LiveDisplay() if sys.stderr.isatty() else CountingDisplay()


class LiveDisplay:
    """The whole run with the time left, the current phase, and the latest metrics, redrawn in place."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console or make_console(stderr=True)
        columns = (TextColumn("{task.description:<34}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(compact=True), console=self.console)
        self._whole = self._progress.add_task("whole run", total=None, visible=False)
        self._phase = self._progress.add_task("starting", total=None)
        self._metrics: dict[str, Any] = {}
        self._live = Live(self._progress, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def plan(self, total: int, unit: str) -> None:
        """Show the bar of the whole run."""
        self._progress.update(self._whole, total=total, description=printable(f"whole run ({unit})"), visible=True)

    def advance_plan(self, amount: int = 1) -> None:
        """Move the bar of the whole run."""
        self._progress.advance(self._whole, amount)

    def phase(self, name: str, total: int | None) -> None:
        """Start the phase's bar anew."""
        self._progress.reset(self._phase, total=total, description=printable(name))

    def advance(self, amount: int = 1) -> None:
        """Move the phase's bar."""
        self._progress.advance(self._phase, amount)

    def count(self, what: str, done: int, total: int) -> None:
        """Let the phase's bar show it."""
        self._progress.update(self._phase, total=total, completed=done, description=printable(what))

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show the latest values below the bars; an iteration also leaves a line."""
        from rich.console import Group
        from rich.text import Text

        self._metrics.update(metrics)
        if "iteration" in metrics:
            self.console.print(Text("  ".join(describe_metrics(metrics))))
        self._live.update(Group(self._progress, Text("  ".join(describe_metrics(self._metrics)), style="bold")))

    def note(self, text: str) -> None:
        """Print the line above the bars."""
        from rich.text import Text

        self.console.print(Text(printable(text), style="dim"))

    def close(self) -> None:
        """Remove the bars and give the cursor back."""
        with suppress(OSError):  # the terminal has gone
            self._live.stop()


class Lines(Silent):
    """Lines for files and pipes, those about something long from time to time."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._counted = "", 0, 0.0
        """What was counted last, how far it was, and when a line said so, or it began."""

    def count(self, what: str, done: int, total: int) -> None:
        """Say every few seconds how far it is; nothing of what takes less than that."""
        now = time.monotonic()
        name, before, said = self._counted
        if name != what or done < before:
            said = now
        elif now - said >= SECONDS_BETWEEN_LINES:
            said = now
            self.note(f"{done:,} of {total:,} {what}")
        self._counted = what, done, said

    def note(self, text: str) -> None:
        """Say it."""
        self._stream.write(printable(f"{text}\n"))
        self._stream.flush()


class PlainDisplay(Lines):
    """Lines without control characters, for files and pipes: notes, phases, and metrics every few seconds."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        self._last = 0.0
        self._said: set[str] = set()

    def phase(self, name: str, total: int | None) -> None:
        """Say each phase the first time it comes."""
        if name not in self._said:
            self._said.add(name)
            self.note(name)

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Say an iteration's metrics always, a step's from time to time."""
        now = time.monotonic()
        if "iteration" in metrics or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self.note("  ".join(describe_metrics(metrics)))


def describe_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics worth showing while a run goes on, as "name value"."""
    shown = []
    for name in LIVE:
        value = metrics.get(name)
        if isinstance(value, int):
            shown.append(f"{LABELS.get(name, name)} {value:,}")
        elif isinstance(value, float):
            shown.append(
                f"{LABELS.get(name, name)} {value:,.0f}" if value >= 100 else f"{LABELS.get(name, name)} {value:.3f}"
            )
    return shown


class CountingDisplay(Lines):
    """Lines for files and pipes: each phase once, then every few seconds how much of it is done."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        self._phase = ""
        self._total: int | None = None
        self._done = 0
        self._said = 0.0

    def phase(self, name: str, total: int | None) -> None:
        """Say what begins."""
        self._phase, self._total, self._done, self._said = name, total, 0, time.monotonic()
        self.note(name if total is None else f"{name} (0 of {total:,})")

    def advance(self, amount: int = 1) -> None:
        """Say from time to time how far it is."""
        self._done += amount
        now = time.monotonic()
        if self._total is not None and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            self.note(f"{self._phase} ({self._done:,} of {self._total:,})")

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Show nothing: these commands take no steps."""
