"""What every component may say while it works: the log in its context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lmflow.distributed.processes import Processes


class Log(Protocol):
    """Where metrics, progress and notes go; components never print.

    `metrics` is the flat summary that ends in run.json, `tables` what belongs there and is not flat, `seconds` the time
    spent in each phase. `processes` are those that work on the run: each has a log, and that of rank 0 alone writes and
    shows.
    """

    metrics: dict[str, Any]
    tables: dict[str, Mapping[str, Any]]
    seconds: dict[str, float]
    notes: list[str]
    processes: Processes

    def plan(self, total: int, unit: str) -> None:
        """Say how much work the whole run is."""

    def advance_plan(self, amount: int = 1) -> None:
        """So much of the planned work is done."""

    def phase(self, name: str, total: int | None = None) -> AbstractContextManager[None]:
        """Show and time a phase; `total` is in the units given to `advance`."""

    def advance(self, amount: int = 1) -> None:
        """So much of the current phase is done."""

    def advance_or_stop(self, amount: int = 1) -> None:
        """`advance`, then stop if asked to: for work that may end anywhere, such as sampling."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of an optimizer step or an aligner's iteration; `step` is required.

        Every process of a run calls it: here they agree on whether to stop.
        """

    def note(self, text: str) -> None:
        """Tell the user something they should know, such as how many samples were cut; repeated, it is shown once."""

    def samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep what was generated in an iteration."""

    def check_stop(self) -> None:
        """Raise Interrupted if a signal asked the run to stop; call it wherever stopping is safe."""


class RunnerLog(Log, Protocol):
    """What the training loop asks of a run's log beside that."""

    stop_signal: int | None

    def checkpoint_saved(self, path: Any) -> None:
        """Tell plugins of a complete checkpoint."""

    def forget_after(self, step: int) -> None:
        """Drop recorded metrics of steps that will be taken again after a resume."""
