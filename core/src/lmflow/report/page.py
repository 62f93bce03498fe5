"""The page around the sections: one file, no scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from lmflow.report import sections
from lmflow.report.content import Content

ORDER = (
    sections.headline,
    sections.rewards,
    sections.losses,
    sections.answers,
    sections.forgetting,
    sections.responses,
    sections.others,
    sections.costs,
    sections.data,
    sections.details,
)


def render_page(content: Content) -> str:
    """The whole page about a run."""
    body = "\n".join(part for part in (section(content) for section in ORDER) if part)
    return wrap_page(f"{content.name} · lmflow run", body)


def wrap_page(title: str, body: str) -> str:
    """A page of its own around `body`, which is HTML already."""
    style = (files("lmflow") / "report" / "style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
