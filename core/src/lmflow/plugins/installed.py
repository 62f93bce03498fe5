"""Versions of the installed packages that results depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from lmflow.versions import __version__

VERSIONED = ("torch", "transformers", "peft", "accelerate", "pluggy", "pydantic", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages results depend on."""
    found = {"python": platform.python_version(), "lmflow": __version__}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
