"""Data sets that the library datasets reads: those on the hub, those it saved, and folders laid out as on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmflow.data.hub import hub_is_out_of_reach
from lmflow.data.record import Found, first_line, record_of
from lmflow.data.tables import row_converter
from lmflow.errors import DataError

ROWS = 128
"""Rows taken at once: each may hold images."""
INSTALL = "pip install 'lmflow-core[hub]'"


def is_installed() -> bool:
    """Whether the library is there; a folder of its name is not it."""
    found = find_spec("datasets")
    return found is not None and found.origin is not None


def iterate_hub(name: str, subset: str | None = None, split: str | None = None) -> Found:
    """A part of a data set on the hub, read as it arrives; images are fetched with their rows."""
    if hub_is_out_of_reach():
        raise DataError(f"{name} does not exist here, and the hub is out of reach")
    if not is_installed():
        raise DataError(
            f"{name} does not exist. If it is a data set on the hub, reading it takes the library datasets: {INSTALL}"
        )
    with _explained(f"{name}: does not exist here, nor can it be read from the hub"):
        yield from _streamed(name, name, subset, split, embed=True)


def iterate_folder(path: Path, subset: str | None, split: str | None) -> Found:
    """A part of a data set in a folder that is laid out as on the hub."""
    with _explained(f"{path}: the library datasets cannot read it"):
        yield from _streamed(str(path), path.name, subset, split)


def iterate_saved(path: Path, label: str) -> Found:
    """The data set that `save_to_disk` of the library wrote to a folder; `label` is what its rows are named by."""
    with _explained(f"{path}: the library datasets cannot read it"):
        from datasets import load_from_disk

        yield from _records(load_from_disk(str(path)), label)


def part_files(path: Path, subset: str | None, split: str | None) -> list[Path]:
    """The files of a part of a data set in a folder that is laid out as on the hub.

    Raises DataError with the configurations or splits there are where another is asked for.
    """
    with _explained(f"{path}: the library datasets cannot read it"):
        builder = _builder(str(path), subset)
        files = builder.config.data_files or {}
        return [Path(file) for file in files.get(choose_split(str(path), [*map(str, files)], split), ())]


def _streamed(name: str, label: str, subset: str | None, split: str | None, *, embed: bool = False) -> Found:
    builder = _builder(name, subset)
    splits = [str(each) for each in builder.config.data_files or builder.info.splits or ()]
    chosen = choose_split(name, splits, split)
    rows = builder.as_streaming_dataset(split=chosen)
    yield from _records(rows, label if chosen == "train" else f"{label}/{chosen}", embed=embed)


def _builder(name: str, subset: str | None) -> Any:
    """What knows the files of a configuration. Raises DataError with those there are where it is none of them."""
    import datasets

    try:
        return datasets.load_dataset_builder(name, name=subset)
    except ValueError:
        found = datasets.get_dataset_config_names(name)
        if subset in found or (subset is None and len(found) < 2):
            raise
    known = ", ".join(found)
    if subset is None:
        raise DataError(f"data.subset: {name} has the configurations {known}; name one with --data.subset")
    raise DataError(f"data.subset: {name} has no configuration {subset!r}; it has {known}")


def choose_split(name: str, splits: list[str], split: str | None) -> str:
    """The split that is asked for, or else the one to train on. Raises DataError with those there are."""
    known = ", ".join(splits) or "none"
    if split is not None and split not in splits:
        raise DataError(f"data.split: {name} has no split {split!r}; it has {known}")
    if split is not None or "train" in splits:
        return split or "train"
    if len(splits) != 1:
        raise DataError(f"data.split: {name} has the splits {known} and none called train; name one with --data.split")
    return splits[0]


def _records(rows: Any, label: str, *, embed: bool = False) -> Found:
    """The records of a data set. Its images stay as they are stored; with `embed` those stored elsewhere are read."""
    number = 0
    for table in rows.with_format("arrow").iter(batch_size=ROWS):
        if embed:
            from datasets.table import embed_table_storage

            table = embed_table_storage(table)
        convert = row_converter(table.schema)
        for row in table.to_pylist():
            number += 1
            yield record_of(convert(row), f"{label}: row {number}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Within the context whatever the library raises, which its many back ends raise, becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {first_line(error)}") from None
