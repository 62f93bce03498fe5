"""What the commands that use a model have in common: their options, and how they show that they work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from lmflow.api.parts import READING_SECTION as READING_SECTION
from lmflow.api.parts import formats_in as formats_in
from lmflow.api.parts import loaded as loaded
from lmflow.cli.options import Scanned
from lmflow.errors import RecipeError
from lmflow.inference.types import Sampling
from lmflow.models.load import Compute
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import resolve_parts
from lmflow.recipe.settings import DATA, Origin, Scope, Setting
from lmflow.run.terminal import make_progress as make_progress

COMPUTE_ALIASES = {"--device": "compute.device", "--precision": "compute.precision"}
COMPUTE_HELP = (
    ("--device auto|cpu|cuda", "Where to compute; auto takes a GPU if there is one."),
    ("--precision auto|fp32|bf16", "dtype of the weights; auto is bf16 on a GPU that has it, else fp32."),
)
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
