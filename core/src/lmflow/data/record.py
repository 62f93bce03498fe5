"""One record of a file, before anything knows what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One record, where it stands ("prompts.jsonl:12", "alpaca.json: record 3"), and the type its file declares."""

    fields: Mapping[str, Any]
    source: str
    declared: str | None = None


def describe(value: Any) -> str:
    """A value's kind and a short look at it, for messages."""
    kinds = {str: "text", list: "a list", dict: "an object", bool: "a truth value", type(None): "nothing"}
    kind = kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return kind if value is None else f"{kind} {shown if len(shown) <= 60 else shown[:57] + '...'}"
