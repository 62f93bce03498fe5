"""Writing what was trained for another tool."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lmflow.components import ExportContext, Exporter, Model
from lmflow.errors import LmflowError
from lmflow.models.heads import FOLDER, head_names, listed
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.run.display import Display
from lmflow.run.log import RunLog


def export(
    exporter: Exporter,
    plugins: Plugins,
    source: str,
    output: Path,
    display: Display | None = None,
    model: Model | None = None,
) -> Path:
    """Export to `output`, and say what becomes of heads. Raises LmflowError where something stands there already.

    `model` loads what is exported, where that takes other options than `--model SOURCE` implies.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LmflowError(f"{output} exists and is not empty; choose another --output.")
    log = RunLog(None, plugins.emit, display)
    model = model or model_from_reference(plugins, source)
    written = exporter.export(ExportContext(plugins=plugins, log=log, source=source, model=model, output=output))
    if note := about_heads(head_names_of(model), head_names(written if written.is_dir() else written.parent), output):
        log.note(note)
    return written


def head_names_of(model: Model) -> list[str]:
    """The heads that lie beside what the component loads, where that is a directory."""
    path = getattr(model, "path", None)
    return head_names(path) if path else []


def about_heads(had: Collection[str], written: Collection[str], output: Path) -> str | None:
    """What became of the heads that an aligner had added, in a sentence; None where there were none."""
    if not had:
        return None
    if left := sorted(set(had) - set(written)):
        return f"{listed(left)}, which the aligner had added, {'is' if len(left) == 1 else 'are'} left out of {output}"
    return f"{listed(had)}, which the aligner had added, lies in {output / FOLDER}, which other tools do not read"
