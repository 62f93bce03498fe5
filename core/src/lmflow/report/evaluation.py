"""The page about an evaluation: its figures, its plots, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmflow.atomic import write_atomically
from lmflow.components import Evaluation, Evaluator
from lmflow.errors import RunDirectoryError
from lmflow.report.page import wrap_page
from lmflow.report.sections import section, shown, table
from lmflow.run_files import REPORT, to_json

RESULTS = "results.json"
ROWS = "rows.jsonl"

WIDTH = 520
"""Widest a plot is shown, in pixels."""


def render_evaluation(record: Mapping[str, Any], plots: Sequence[Path]) -> str:
    """The page, from what results.json holds and the plots that were drawn; those in SVG stand within it."""
    name = str(record["evaluator"]["name"])
    drawn = [path.read_text(encoding="utf-8") for path in plots if path.suffix == ".svg"]
    # What precedes the element (declarations) has no place inside HTML.
    figures = "".join(f'<figure style="max-width:{WIDTH}px">{text[text.index("<svg") :]}</figure>' for text in drawn)
    how = {**record["evaluator"], "records": record["records"], "seconds": record["seconds"], **record["versions"]}
    body = (
        f"<header><h1>{escape(name)}</h1></header>"
        + section("Figures", rows_of(record["metrics"]))
        + section("Plots", figures, kind="charts")
        + section("What the inferencer counted", rows_of(record["inferencer_figures"]))
        + section("Notes", "".join(f"<p>{escape(str(note))}</p>" for note in record["notes"]))
        + section("How it was measured", rows_of(how))
    )
    return wrap_page(f"{name} · lmflow eval", body)


def rows_of(values: Mapping[str, Any]) -> str:
    """Names and values, empty without any."""
    return table([(name, shown(value)) for name, value in values.items()]) if values else ""


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Raise RunDirectoryError where results stand already, or a file is in the way."""
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryError(f"{directory} is a file; --output takes a directory")
    if (directory / RESULTS).exists() and not overwrite:
        raise RunDirectoryError(f"{directory} holds results already; replace them with --overwrite")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RESULTS).exists():
        raise RunDirectoryError(f"{directory} holds other files; name a new or empty directory")


def write_evaluation(
    directory: Path, record: Mapping[str, Any], evaluation: Evaluation, evaluator: Evaluator
) -> list[Path]:
    """Write results.json, rows.jsonl, the evaluator's plots, and report.html around them; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    rows, results = directory / ROWS, directory / RESULTS
    write_atomically(rows, "".join(f"{to_json(row)}\n" for row in evaluation.rows))
    plots = evaluator.plot(evaluation, directory)
    report = directory / REPORT
    write_atomically(report, render_evaluation(record, plots))
    write_atomically(results, to_json(record, indent=2) + "\n")  # last: by it the directory is known
    return [results, rows, report, *plots]
