"""Writing what was trained for another tool."""

from __future__ import annotations

from pathlib import Path

from lmflow.components import ExportContext, Exporter
from lmflow.errors import LmflowError
from lmflow.plugins import Plugins
from lmflow.recipe.resolve import model_from_reference
from lmflow.run.log import RunLog


def export(exporter: Exporter, plugins: Plugins, source: str, output: Path) -> Path:
    """Export to `output`. Raises LmflowError where something stands there already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LmflowError(f"{output} exists and is not empty; choose another --output.")
    log = RunLog(None, plugins.emit)
    model = model_from_reference(plugins, source)
    return exporter.export(ExportContext(plugins=plugins, log=log, source=source, model=model, output=output))
