"""LMFlow's file, {"type": T, "instances": [...]}, one instance after the other, so that it need not fit into memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from lmflow.data.json_array import JsonReader

TYPE, INSTANCES = "type", "instances"


class NoContainer(Exception):
    """The JSON is not an object with a list of instances."""


def declared_type(stream: IO[bytes]) -> Any:
    """What the object says its instances are; None where it does not say.

    Where that stands behind the instances, all of them are read over to find it. Raises NoContainer where there are
    none, and json.JSONDecodeError as `iterate_array` does.
    """
    reader = JsonReader(stream)
    declared, found = None, False
    try:
        for key in reader.keys():  # noqa: SIM118 - it is no mapping
            if not _begins_instances(key, reader):
                value = reader.value()
                declared = value if key == TYPE else declared
            elif declared is not None:
                return declared
            else:
                found = True
                deque(reader.elements(), maxlen=0)
    except json.JSONDecodeError:
        if found:
            raise
    if not found:
        raise NoContainer
    return declared


def iterate_instances(stream: IO[bytes]) -> Iterator[tuple[Any, str | None]]:
    """The instances of such an object, as `iterate_array` gives elements."""
    reader = JsonReader(stream)
    seen = False
    for key in reader.keys():  # noqa: SIM118 - it is no mapping
        if not _begins_instances(key, reader):
            reader.value()
        elif seen:
            raise reader.error(f"A second {INSTANCES!r}")
        else:
            seen = True
            for value in reader.elements():
                yield value, reader.repeated
    reader.end()


def _begins_instances(key: str, reader: JsonReader) -> bool:
    return key == INSTANCES and reader.next() == "["
