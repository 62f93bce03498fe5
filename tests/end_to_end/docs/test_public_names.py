"""What templates and pages for plugin authors import is what docs/plugins/public.md calls public."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .pages import ROOT, name_of

PUBLIC = ("hookspecs", "components", "errors", "testing", "testing.runs", "testing.tiny")
"""Modules of which every name is public, below lmflow."""
IMPORT = re.compile(r"^ *from (lmflow[\w.]*) import (\([^)]*\)|[\w, ]+)", flags=re.MULTILINE)


def imported(text: str) -> Iterator[tuple[str, str]]:
    """Module and name of every import from lmflow."""
    for module, names in IMPORT.findall(text):
        yield from ((module, name) for name in re.findall(r"\w+", names))


def read_by_authors() -> Iterator[Path]:
    """The templates, and the pages beside the reference."""
    yield from (path for path in (ROOT / "templates" / "plugin").rglob("*") if path.suffix in (".py", ".jinja"))
    yield from (path for path in (ROOT / "docs" / "plugins").glob("*.md") if path.name != "reference.md")


def test_templates_and_pages_import_what_is_public():
    reference = (ROOT / "docs" / "plugins" / "reference.md").read_text(encoding="utf-8")
    listed = set(imported(re.sub(r"^`", "", reference, flags=re.MULTILINE)))
    assert ("lmflow.data.sample", "Sample") in listed
    private = [
        f"{name_of(path)}: from {module} import {name}"
        for path in read_by_authors()
        for module, name in imported(path.read_text(encoding="utf-8"))
        if module.removeprefix("lmflow.") not in PUBLIC and (module, name) not in listed
    ]
    assert not private, f"not in the reference: {private}; add it to docs/generate_reference.py, or use what is public"
