"""The pages made from the code say what the code says now."""

from __future__ import annotations

import ast
import difflib
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from .pages import GENERATED, ROOT, blocks, name_of


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
