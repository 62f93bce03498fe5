"""Images made from code, and vision-language models around the tiny Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.components import LoadRequest
from lmflow.plugins import load_plugins

pytest.importorskip("open_clip", reason="open_clip is an extra of lmflow-multimodal")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of plain images by colour."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for colour in ("red", "green", "blue", "white"):
        Image.new("RGB", (20, 16), colour).save(folder / f"{colour}.png")
    return {file.stem: str(file) for file in folder.iterdir()}


@pytest.fixture
def vision(model_directory: Path, tower_file: Path) -> Callable[..., Any]:
    """A fresh vision-language model around the tiny Llama."""

    def load(**options: Any) -> Any:
        from lmflow_multimodal.component import VisionLanguage

        settings = {
            "language_model": str(model_directory),
            "tower": str(tower_file),
            "checkpoint": "random",
            **options,
        }
        return VisionLanguage(**settings).load(LoadRequest(plugins=load_plugins()))

    return load
