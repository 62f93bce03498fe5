"""What the commands that use a model have in common: their options, and how they show that they work."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lmflow.cli.options import Scanned
from lmflow.components import RunContext
from lmflow.errors import RecipeError
from lmflow.inference.types import Sampling
from lmflow.models.load import Compute, load_for_inference
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import resolve_parts
from lmflow.recipe.settings import DATA, Origin, Scope, Setting
from lmflow.run.display import Display, Silent

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel
    from lmflow.run.log import RunLog

COMPUTE_ALIASES = {"--device": "compute.device", "--precision": "compute.precision"}
COMPUTE_HELP = (
    ("--device auto|cpu|cuda", "Where to compute; auto takes a GPU if there is one."),
    ("--precision auto|fp32|bf16", "dtype of the weights; auto is bf16 on a GPU that has it, else fp32."),
)
SECONDS_BETWEEN_LINES = 5.0

SAMPLING_SECTIONS: Mapping[str, type[BaseModel]] = {"sampling": Sampling, "compute": Compute}


def resolve_for_use(scanned: Scanned, plugins: Plugins, scope: Scope, *, reads_data: bool = False) -> dict[str, Any]:
    """The parts a command line names; raises RecipeError with everything wrong in it.

    Unless the command `reads_data`, `data` is None where nothing names data.
    """
    settings = joined_stops(scanned.settings)
    if not reads_data and not any(setting.path.partition(".")[0] == DATA for setting in settings):
        sections = {name: owner for name, owner in scope.sections.items() if name != DATA}
        scope = replace(scope, slots=[slot for slot in scope.slots if slot != DATA], sections=sections)
    try:
        parts = resolve_parts(plugins, scope, settings)
    except RecipeError as error:
        raise RecipeError([*scanned.problems, *error.problems]) from None
    if scanned.problems:
        raise RecipeError(scanned.problems)
    return {DATA: None, **parts}


def joined_stops(settings: Sequence[Setting]) -> list[Setting]:
    r"""All `--sampling.stop TEXT` as one list: a stop string may hold commas, and `\n` and `\t` as such."""
    stops = [setting for setting in settings if setting.path == "sampling.stop"]
    others = [setting for setting in settings if setting.path != "sampling.stop"]
    if not stops:
        return others
    values = [setting.value.replace("\\n", "\n").replace("\\t", "\t") for setting in stops]
    return [*others, Setting("sampling.stop", tuple(values), Origin("option", "--sampling.stop"))]


def make_progress(*, quiet: bool) -> Display:
    """Bars on a terminal, lines elsewhere, both on standard error; nothing if quiet."""
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        from lmflow.cli.display import LiveDisplay

        return LiveDisplay()
    return CountingDisplay()


class CountingDisplay(Silent):
    """Lines for files and pipes: each phase once, then every few seconds how much of it is done."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
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

    def note(self, text: str) -> None:
        """Say it."""
        self._stream.write(f"{text}\n")
        self._stream.flush()


def load_parts(parts: Mapping[str, Any], plugins: Plugins, log: RunLog) -> LanguageModel:
    """The model of a command's parts, loaded, and its inferencer opened with it."""
    model = load_for_inference(
        parts["model"],
        plugins,
        context=parts["context"],
        attention=parts["attention"],
        compute=parts["compute"],
    )
    parts["inferencer"].open(RunContext(plugins=plugins, log=log, model=model))
    return model
