"""Values of JSON, and keys that stand twice in one object, of which Python's decoder keeps the last alone."""

from __future__ import annotations

import json
from typing import Any


class JsonValues:
    """Decodes one value after the other."""

    def __init__(self) -> None:
        self.repeated: str | None = None
        """A key that an object of the last value has twice, with different values; None where there is none."""
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """The value that a text is. Raises json.JSONDecodeError as `json.loads` does."""
        self.repeated = None
        return self._decoder.decode(text)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends; raises as `json.JSONDecoder.raw_decode` does."""
        self.repeated = None
        return self._decoder.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs) and self.repeated is None:
            self.repeated = next((key for key, value in pairs if made[key] != value), None)
        return made
