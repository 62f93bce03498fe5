"""What this distribution adds: inferencer `speculative`, command `draft`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmflow.components import Command, Inferencer
from lmflow.hookspecs import hookimpl
from lmflow_speculative.speculative import Speculative

if TYPE_CHECKING:
    from lmflow.plugins import Plugins

LMFLOW_INTERFACE = 2


@hookimpl
def lmflow_inferencers() -> list[type[Inferencer]]:
    """Inferencer speculative."""
    return [Speculative]


@hookimpl
def lmflow_commands() -> list[Command]:
    """Command draft."""
    return [Command("draft", "Train a draft for --inferencer speculative on a model's own samples.", _make_draft)]


def _make_draft(plugins: Plugins, arguments: Sequence[str]) -> tuple[Callable[..., None], list[str]] | None:
    from lmflow_speculative.draft_command import make_command

    return make_command(plugins, arguments)
