"""What a run looks like in a terminal: live progress, and the closing table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.formatting import change, duration, size
from lmflow.report.next_steps import next_commands
from lmflow.run.display import Display, Silent
from lmflow.run_files import REPORT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LIVE = ("step", "iteration", "loss", "reward_mean", "heldout_reward", "eval_loss", "tokens_per_second")
LABELS = {
    "reward_mean": "reward",
    "heldout_reward": "held-out reward",
    "eval_loss": "held-out loss",
    "tokens_per_second": "tokens/s",
}
SECONDS_BETWEEN_LINES = 5.0

COMPARED = (
    ("held-out mean reward", "heldout_reward", 3, ""),
    ("held-out greedy reward", "heldout_greedy_reward", 3, ""),
    ("greedy accuracy", "heldout_accuracy", 1, "%"),
    ("held-out loss", "eval_loss", 3, ""),
    ("loss on generic text", "generic_loss", 3, ""),
)
"""Rows of the closing table: label, metric, decimals, unit."""


def make_terminal_display() -> Display:
    """A live panel on a terminal, plain lines elsewhere; both on standard error."""
    return LiveDisplay() if sys.stderr.isatty() else PlainDisplay()


class LiveDisplay:
    """The whole run with the time left, the current phase, and the latest metrics, redrawn in place."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console or Console(stderr=True)
        columns = (TextColumn("{task.description:<34}"), BarColumn(bar_width=30), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(compact=True), console=self.console)
        self._whole = self._progress.add_task("whole run", total=None, visible=False)
        self._phase = self._progress.add_task("starting", total=None)
        self._metrics: dict[str, Any] = {}
        self._live = Live(self._progress, console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def plan(self, total: int, unit: str) -> None:
        """Show the bar of the whole run."""
        self._progress.update(self._whole, total=total, description=f"whole run ({unit})", visible=True)

    def advance_plan(self, amount: int = 1) -> None:
        """Move the bar of the whole run."""
        self._progress.advance(self._whole, amount)

    def phase(self, name: str, total: int | None) -> None:
        """Start the phase's bar anew."""
        self._progress.reset(self._phase, total=total, description=name)

    def advance(self, amount: int = 1) -> None:
        """Move the phase's bar."""
        self._progress.advance(self._phase, amount)

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

        self.console.print(Text(text, style="dim"))

    def close(self) -> None:
        """Remove the bars and give the cursor back."""
        self._live.stop()


class PlainDisplay(Silent):
    """Lines without control characters, for files and pipes: notes, phases, and metrics every few seconds."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._last = 0.0
        self._said: set[str] = set()

    def phase(self, name: str, total: int | None) -> None:
        """Say each phase the first time it comes."""
        if name not in self._said:
            self._said.add(name)
            self._line(name)

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Say an iteration's metrics always, a step's from time to time."""
        now = time.monotonic()
        if "iteration" in metrics or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._line("  ".join(describe_metrics(metrics)))

    def note(self, text: str) -> None:
        """Say it."""
        self._line(text)

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


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


# The closing table


def show_summary(record: Mapping[str, Any], directory: Path) -> None:
    """Print the closing table on standard output."""
    from rich.console import Console

    console = Console(soft_wrap=False)
    console.print(summary_table(record))
    for line in result_lines(record, directory):
        console.print(line, soft_wrap=True, highlight=False)


def summary_table(record: Mapping[str, Any]) -> Table:
    """What changed, before and after, and what it cost; metrics the run does not have are left out."""
    from rich.table import Table

    metrics = record["metrics"]
    table = Table(title=f"Run {record['status']}", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for label, name, decimals, unit in (*COMPARED, *further(metrics)):
        before, after = metrics.get(f"{name}_before"), metrics.get(f"{name}_after")
        if name == "heldout_greedy_reward" and "heldout_accuracy_after" in metrics:
            continue  # the accuracy says it already
        if before is not None and after is not None:
            scale = 100 if unit == "%" else 1
            values = [f"{scale * value:.{decimals}f}{unit}" for value in (before, after)]
            difference = change(scale * before, scale * after, decimals)
            table.add_row(label, *values, f"{difference}{unit.replace('%', ' points')}")
    table.add_section()
    table.add_row("wall time", "", duration(record["wall_seconds"]), "")
    table.add_row("peak memory", "", size(record["peak_memory_bytes"]), "")
    if metrics.get("tokens_per_second"):
        table.add_row("training speed", "", f"{metrics['tokens_per_second']:,.0f} tokens/s", "")
    return table


def further(metrics: Mapping[str, Any]) -> Sequence[tuple[str, str, int, str]]:
    """Rows for what an aligner compares itself: each metric it has with `_before` and `_after`."""
    known = {name for _, name, _, _ in COMPARED}
    names = [name.removesuffix("_before") for name in metrics if name.endswith("_before")]
    return [(name.replace("_", " "), name, 3, "") for name in names if name not in known]


def result_lines(record: Mapping[str, Any], directory: Path) -> Sequence[str]:
    """Where the results are, and what to type next."""
    return [
        "",
        f"Result   {directory / record.get('result', '')}",
        f"Report   {directory / REPORT}",
        *(f"{'Next' if index == 0 else '':<9}{step}" for index, step in enumerate(next_commands(record, directory))),
    ]
