"""What a run says while it runs: metrics, progress, samples, and whether it was asked to stop."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lmflow.distributed.processes import Processes
from lmflow.distributed.signals import default_handlers, handling, stopping_signals
from lmflow.errors import Interrupted
from lmflow.run.directory import RunDirectory
from lmflow.run.display import Display, Silent

Emit = Callable[..., Iterable[str] | None]
"""Tells plugins of an event; returns what to say of those that failed."""


ALONE = Processes()


class RunLog:
    """Passed to whatever works on a run; the one place that writes metrics, shows progress and fires events.

    `metrics` is the flat summary that ends in run.json, `tables` what belongs there and is not flat, `notes` what the
    user was told, `seconds` the time spent in each phase. `processes` work on the run together; each
    has a log, and that of rank 0 alone writes and shows.
    """

    def __init__(
        self, directory: RunDirectory | None, emit: Emit, display: Display | None = None, processes: Processes = ALONE
    ) -> None:
        self.metrics: dict[str, Any] = {}
        self.tables: dict[str, Mapping[str, Any]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.notes: list[str] = []
        self.stop_signal: int | None = None
        self.processes = processes
        self._asked: int | None = None
        self._directory = directory
        self._emit = emit
        self._display = display or Silent()

    def _show(self, what: str, *values: Any) -> None:
        """Show something; nothing more once what shows it has gone, as a terminal has that was closed."""
        try:
            getattr(self._display, what)(*values)
        except OSError:
            self._display = Silent()

    def plan(self, total: int, unit: str) -> None:
        """Say how much work the whole run is."""
        self._show("plan", total, unit)

    def advance_plan(self, amount: int = 1) -> None:
        """So much of the planned work is done."""
        self._show("advance_plan", amount)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[None]:
        """Show and time a phase; `total` is in the units given to `advance`."""
        self._show("phase", name, total)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def advance(self, amount: int = 1) -> None:
        """So much of the current phase is done."""
        self._show("advance", amount)

    def count(self, what: str, done: int, total: int) -> None:
        """So much of something long is done, whatever the phase."""
        self._show("count", what, done, total)

    def advance_or_stop(self, amount: int = 1) -> None:
        """`advance`, then stop if asked to: for work that may end anywhere, such as sampling.

        Of several processes each stops for itself, so it belongs into `processes.map_sharded`, which tells the others.
        """
        self.advance(amount)
        self.check_stop()
        if self._asked is not None:
            raise Interrupted(self._asked)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of an optimizer step or an aligner's iteration; `step` is required.

        Every process of a run calls it: here they agree on whether to stop (see `sync_stop`).
        """
        self.sync_stop()
        if self._directory:
            self._directory.append_metrics(metrics)
        self._show("update", metrics)
        self.emit("lmflow_step_finished", step=metrics["step"], metrics=metrics)

    def note(self, text: str) -> None:
        """Tell the user something they should know, such as how many samples were cut; said again, shown once."""
        if text not in self.notes:
            self.notes.append(text)
            self._show("note", text)

    def samples(self, iteration: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep what was generated in an iteration."""
        if self._directory:
            self._directory.write_samples(iteration, rows)

    def checkpoint_saved(self, path: Path) -> None:
        """Tell plugins of a complete checkpoint."""
        self.emit("lmflow_checkpoint_saved", path=path)

    def emit(self, event: str, **values: Any) -> None:
        """Tell plugins of an event, and the user of those that could not take it."""
        for failure in self._emit(event, **values) or ():
            self.note(failure)

    def forget_after(self, step: int) -> None:
        """Drop recorded metrics of steps that will be taken again after a resume."""
        if self._directory and (told := self._directory.drop_metrics_after(step)):
            self.note(told)

    @property
    def asked_to_stop(self) -> int | None:
        """The signal that asked this process to stop, be it too late for the run to."""
        return self.stop_signal or self._asked

    def sync_stop(self) -> None:
        """Let all processes know whether one was asked to stop, so that they stop at the same place: all call it."""
        asked = int(self.processes.max(self._asked or 0))
        if asked:
            self.stop_signal = asked

    def check_stop(self) -> None:
        """Raise Interrupted if a signal asked the run to stop; call it wherever stopping is safe.

        Of several processes all raise at the same place, because they agreed before it.
        """
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal)

    def sync_and_check_stop(self) -> None:
        """`sync_stop`, then `check_stop`: between stages of a run."""
        self.sync_stop()
        self.check_stop()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Within the context a signal asks the run to stop at the next safe place; a second one ends it at once."""
        numbers = stopping_signals()

        def ask(number: int, _: FrameType | None) -> None:
            self._asked = number
            if self.processes.size == 1:
                self.stop_signal = number
            default_handlers(*numbers)
            self.note("stopping at the next safe place; once more to stop at once")

        with handling(ask, *numbers):
            yield
