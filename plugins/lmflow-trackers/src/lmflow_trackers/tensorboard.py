"""Tracker `tensorboard`: the curves of a run as event files that TensorBoard reads."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from lmflow.components import Requirement, Tracker
from lmflow.hookspecs import hookimpl
from lmflow.recipe.recipe import Recipe, dump
from lmflow.run_files import TRACKERS
from lmflow_trackers.curves import Curves, numeric, points, recall, remember, versions, written_lines


class TensorBoard(Tracker):
    """Write the curves of a run for TensorBoard."""

    name = "tensorboard"
    requires = (Requirement("tensorboard", "'lmflow-trackers[tensorboard]'"),)

    directory: str | None = Field(
        None, description="Folder that gets a folder of this run's name; if unset, trackers/ in the run's directory."
    )
    flush_seconds: int = Field(
        5, gt=0, description="How often the points are written to disk; a killed run loses at most so much."
    )

    _writer: Any = PrivateAttr(None)
    _curves: Curves = PrivateAttr(default_factory=Curves)
    _step: int = PrivateAttr(0)

    @hookimpl
    def lmflow_run_started(self, recipe: Recipe, directory: Path) -> None:
        """Open an event file; one of a run that is continued gets the points that earlier files lack."""
        from torch.utils.tensorboard import SummaryWriter

        place = self._place(directory.resolve())
        self._curves = Curves(_reached(place))
        self._writer = SummaryWriter(str(place), flush_secs=self.flush_seconds)
        self._step = 0
        if not self._curves.reached:
            self._writer.add_text("recipe", _code(dump(recipe)), 0)
            self._writer.add_text("versions", _table(versions(directory)), 0)
        for line in written_lines(directory):
            self._write(line["step"], points(line))

    @hookimpl
    def lmflow_step_finished(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the points of a line of metrics."""
        self._write(step, points(metrics))

    @hookimpl
    def lmflow_checkpoint_saved(self, path: Path) -> None:
        """Say where the checkpoint is."""
        self._writer.add_text("checkpoint", str(path), self._step)

    @hookimpl
    def lmflow_run_finished(self, status: str, metrics: Mapping[str, Any]) -> None:
        """Write how the run ended, and of a completed one what was measured before and after."""
        self._writer.add_text("status", status, self._step)
        if status == "completed":
            self._write(0, {f"summary/{name}": value for name, value in numeric(metrics).items()})
        self._writer.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._step = max(self._step, step)
        for tag, value in self._curves.advance(step, values).items():
            self._writer.add_scalar(tag, value, step)

    def _place(self, run: Path) -> Path:
        """Where the event files of the run at `run` go: where they went before, else a folder of their own."""
        if self.directory is None:
            return run / TRACKERS / self.name
        known = recall(run, self.name).get("place")
        place = Path(known) if known else _free(Path(self.directory).resolve() / run.name)
        remember(run, self.name, {"place": str(place)})
        return place


def _free(path: Path) -> Path:
    """`path`, or with a number appended one that does not exist."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([path], numbered) if not candidate.exists())


def _reached(place: Path) -> dict[str, int]:
    """The last step of each curve in the event files at `place`."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not place.exists():
        return {}
    accumulator = EventAccumulator(str(place), size_guidance={SCALARS: 1})
    accumulator.Reload()
    return {tag: accumulator.Scalars(tag)[-1].step for tag in accumulator.Tags()[SCALARS]}


def _code(text: str) -> str:
    """`text` as Markdown shows it unchanged."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _table(values: Mapping[str, str]) -> str:
    """A Markdown table."""
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in values.items())
