"""Which files hold data, by how their names end."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".json", ".jsonl", ".ndjson", ".txt", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")
"""Files that tell of data and hold none."""


def ending(file: Path) -> str:
    """The file's ending without that of a compression."""
    return _uncompressed(file).suffix.lower()


def without_ending(file: Path) -> str:
    """The file's name without its endings."""
    return _uncompressed(file).stem


def _uncompressed(file: Path) -> Path:
    name = file.name
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name)


def is_data(file: Path) -> bool:
    """Whether the file's name is that of a file of records."""
    return ending(file) in ENDINGS and file.name not in DESCRIPTIONS
