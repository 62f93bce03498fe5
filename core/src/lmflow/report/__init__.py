"""report.html: one self-contained page about a run, made from the files in its directory."""

from __future__ import annotations

from pathlib import Path

from lmflow.atomic import write_atomically
from lmflow.report.content import read_content
from lmflow.report.page import render_page
from lmflow.report.stages import render_stages
from lmflow.run_files import REPORT

__all__ = ["write_report"]


def write_report(directory: Path) -> Path:
    """Write the page for the run at `directory`, whatever state the run is in; returns its path."""
    path, content = directory / REPORT, read_content(directory)
    write_atomically(path, render_stages(content) if content.part("stages") else render_page(content))
    return path
