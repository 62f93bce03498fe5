"""The page about an evaluation: its figures, its pictures, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmflow.report.page import wrap_page
from lmflow.report.sections import section, shown, table

WIDTH = 520
"""Widest a picture is shown, in pixels."""


def render_evaluation(record: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The page, from what results.json holds and the pictures that were drawn; those in SVG stand within it."""
    name = str(record["evaluator"]["name"])
    drawn = [path.read_text(encoding="utf-8") for path in pictures if path.suffix == ".svg"]
    # What precedes the element (declarations) has no place inside HTML.
    figures = "".join(f'<figure style="max-width:{WIDTH}px">{text[text.index("<svg") :]}</figure>' for text in drawn)
    how = {**record["evaluator"], "records": record["records"], "seconds": record["seconds"], **record["versions"]}
    body = (
        f"<header><h1>{escape(name)}</h1></header>"
        + section("Figures", rows_of(record["metrics"]))
        + section("Pictures", figures, kind="charts")
        + section("What the inferencer counted", rows_of(record["inferencer_figures"]))
        + section("Notes", "".join(f"<p>{escape(str(note))}</p>" for note in record["notes"]))
        + section("How it was measured", rows_of(how))
    )
    return wrap_page(f"{name} · lmflow eval", body)


def rows_of(values: Mapping[str, Any]) -> str:
    """Names and values, empty without any."""
    return table([(name, shown(value)) for name, value in values.items()]) if values else ""
