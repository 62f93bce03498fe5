"""The pages made from the code say what the code says now."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from .pages import GENERATED, PAGES, ROOT, blocks, name_of

WHOLLY_PUBLIC = {"lmflow", "lmflow.hookspecs", "lmflow.components", "lmflow.errors", "lmflow.testing"}
"""Modules that docs/plugins/public.md calls public in every name."""
IMPORT = re.compile(r"^[ `]*from (lmflow(?:\.\w+)*) import (?:\(([^)]*)\)|([\w, ]+))", re.MULTILINE)
TEMPLATES = sorted(file for file in (ROOT / "templates" / "plugin").rglob("*") if file.suffix in {".jinja", ".py"})


@pytest.fixture(params=["generate_reference", "generate_commands"])
def generator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of docs/, imported as it imports its neighbours."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module(request.param)


def test_a_page_is_what_its_generator_makes(generator: ModuleType):
    page: Path = generator.PAGE
    old = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    new = generator.render().splitlines()
    changes = "\n".join(list(difflib.unified_diff(old, new, "the page", "the code", lineterm="", n=1))[:40])
    assert old == new, (
        f"{name_of(page)} is not what the code says; make docs writes it anew, then look at it:\n{changes}"
    )


@pytest.mark.parametrize("name", GENERATED)
def test_its_python_is_python(name: str):
    for block in blocks(ROOT / name):
        if block.language == "python":
            ast.parse(block.text, filename=block.place)


def imported_names(text: str) -> set[tuple[str, str]]:
    """Modules of lmflow and the names that `text` imports from them."""
    found = ((module, within or plain) for module, within, plain in IMPORT.findall(text))
    return {(module, name) for module, names in found for name in re.findall(r"\w+", names)}


@pytest.mark.parametrize("file", [*PAGES, *TEMPLATES], ids=name_of)
def test_what_authors_are_shown_imports_public_names_alone(file: Path):
    public = imported_names((ROOT / "docs" / "plugins" / "reference.md").read_text(encoding="utf-8"))
    found = {each for each in imported_names(file.read_text(encoding="utf-8")) if each[0] not in WHOLLY_PUBLIC}
    assert not found - public, (
        f"{name_of(file)} imports what the reference does not name; list it in docs/generate_reference.py"
    )


def test_an_import_is_seen_wherever_it_stands():
    text = "from lmflow.a.b import (\n    one,\n    two,\n)\n    from lmflow.c import three\nfrom lmflow_mine import four\n`from lmflow.d import five`"
    assert imported_names(text) == {
        ("lmflow.a.b", "one"),
        ("lmflow.a.b", "two"),
        ("lmflow.c", "three"),
        ("lmflow.d", "five"),
    }
