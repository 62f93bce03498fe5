"""Which distribution brings which component, installed or not: for the message about one that is missing.

Nothing is ever chosen by it. known_plugins.json is a list for people, and anyone's plugin may be in it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files


def distribution_for(slot: str, name: str) -> str | None:
    """The distribution that brings the component; None if no known one does."""
    return next((home for home, offered in _known().items() if name in offered.get(slot, ())), None)


def distributions_for(name: str) -> list[str]:
    """The known distributions with a component or command of that name, whatever its slot."""
    return [home for home, offered in _known().items() if any(name in names for names in offered.values())]


@cache
def _known() -> dict[str, dict[str, list[str]]]:
    known: dict[str, dict[str, list[str]]] = json.loads(
        (files("lmflow") / "plugins" / "known_plugins.json").read_text("utf-8")
    )
    return known
