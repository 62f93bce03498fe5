"""The core knows slots, not who fills them."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import lmflow

SOURCE = Path(lmflow.__file__).parent
STRANGERS = ("speculative", "longctx", "multimodal", "open_clip", "llava", "easy_vqa", "yarn", "passkey", "xformers")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_core_names_no_plugin_that_stretches_it(path: Path):
    text = path.read_text(encoding="utf-8").lower()
    assert [name for name in STRANGERS if name in text] == []


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages([str(SOURCE)], "lmflow.")])
def test_every_module_imports(name: str):
    if not name.endswith("__main__"):
        assert importlib.import_module(name)
