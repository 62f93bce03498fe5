"""Rows of typed tables as the records they were made of: what a column's type added to them is taken away again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROWS = 1024
"""Rows of a table read at once."""
MEDIA = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"BM": "image/bmp",
}
"""How images begin, and what they then are."""
UNKNOWN = "application/octet-stream"
"""What others are called: who reads the image looks at its bytes."""
Convert = Callable[[Any], Any]


def rows_of(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, or of an Arrow file as the library datasets saves them.

    Raises what pyarrow raises for a file that is none.
    """
    for batch in _parquet(file) if kind != ".arrow" else _arrow(file):
        convert = row_converter(batch.schema)
        yield from map(convert, batch.to_pylist())


def _parquet(file: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=ROWS)


def _arrow(file: Path) -> Iterator[Any]:
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        try:
            reader = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            file_reader = pyarrow.ipc.open_file(source)
            reader = map(file_reader.get_batch, range(file_reader.num_record_batches))
        for batch in reader:
            for start in range(0, batch.num_rows, ROWS):
                yield batch.slice(start, ROWS)


def row_converter(schema: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """What makes a record of a row of this Arrow schema.

    All values of a column have one type, so an object in it has every field that any of them has, null where it had
    none: these are dropped. Nulls in lists, in maps and in columns of their own stay, as no type puts them there.
    """
    found = {field.name: converter(field.type) for field in schema}
    nested = {name: convert for name, convert in found.items() if convert is not None}
    if not nested:
        return dict
    return lambda row: {
        name: nested[name](value) if name in nested and value is not None else value for name, value in row.items()
    }


def converter(kind: Any) -> Convert | None:
    """What makes a value of JSON of a value of this Arrow type that is not null; None where it is one already."""
    from pyarrow import types

    if types.is_struct(kind):
        return image_reference if is_image(kind) else _object_converter(kind)
    if types.is_map(kind):
        return partial(_from_map, converter(kind.item_type))
    if any(is_list(kind) for is_list in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        inner = converter(kind.value_type)
        return None if inner is None else partial(_each, inner)
    if getattr(kind, "extension_name", "") == "arrow.json":
        return _from_json
    return None


def _object_converter(kind: Any) -> Convert:
    fields = {field.name: converter(field.type) for field in kind}
    return lambda value: {
        name: each if (convert := fields[name]) is None else convert(each)
        for name, each in value.items()
        if each is not None
    }


def _from_map(convert: Convert | None, pairs: Any) -> dict[str, Any]:
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return {str(key): value if convert is None or value is None else convert(value) for key, value in items}


def _each(convert: Convert, values: Any) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _from_json(value: Any) -> Any:
    """A value of a column whose type is JSON; the library datasets has read it already, pyarrow has not."""
    return json.loads(value) if isinstance(value, str) else value


# Images


def is_image(kind: Any) -> bool:
    """Whether the Arrow type is that of the library datasets for images: their bytes, or where they lie, or both."""
    from pyarrow import types

    names = {field.name: field.type for field in kind}
    return names.keys() == {"bytes", "path"} and types.is_binary(names["bytes"])


def image_reference(value: Mapping[str, Any]) -> str | None:
    """An image as the formats take it: its path, or a data URI where the table holds the image itself."""
    data = value["bytes"]
    if data is None:
        path: str | None = value["path"]
        return path
    media = next((name for begin, name in MEDIA.items() if data.startswith(begin)), UNKNOWN)
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
