"""Data sets of the library datasets: their configurations and splits, their images, and what is told where one lacks."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.data.containers import iterate_records
from lmflow.data.files import data_files, fingerprint, unread_files
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

datasets = pytest.importorskip("datasets")

ROWS = [{"text": "a", "call": {"x": 1}}, {"text": "b", "call": {"y": 2}}, {"text": "c", "call": {"x": 3, "y": 4}}]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CARD = """---
configs:
- config_name: short
  data_files:
  - {split: train, path: short/train-*}
  - {split: test, path: short/test-*}
- config_name: long
  data_files: [{split: train, path: long/*}]
---
About the set.
"""


def shard(folder: Path, split: str, rows: list[dict[str, Any]], number: int = 0, of: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}-{number:05}-of-{of:05}.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set as it lies on the hub, its training split in two files."""
    path = tmp_path / "set"
    shard(path / "data", "train", ROWS[:2], 0, 2)
    shard(path / "data", "train", ROWS[2:], 1, 2)
    shard(path / "data", "test", [{"text": "tested", "call": {"x": 0}}])
    return path


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A data set with two configurations, which its card names."""
    path = tmp_path / "configured"
    for name in ("short", "long"):
        shard(path / name, "train", [{"text": name}])
    shard(path / "short", "test", [{"text": "tested"}])
    (path / "README.md").write_text(CARD)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved"
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(parts).save_to_disk(str(path))
    return path


@pytest.fixture
def hub(configured: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set on a hub in reach: the configured one."""
    for name in ("load_dataset_builder", "get_dataset_config_names"):
        there: Callable[..., Any] = getattr(datasets, name)
        monkeypatch.setattr(datasets, name, lambda _, there=there, **options: there(str(configured), **options))
    monkeypatch.setattr("lmflow.data.library.hub_is_out_of_reach", lambda: False)
    return "owner/set"


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("library", "layout", "containers"):
        monkeypatch.setattr(f"lmflow.data.{module}.is_installed", lambda: False)


def texts(path: Path | str, subset: str | None = None, split: str | None = None) -> list[str]:
    found = list(iterate_records(path, subset, split))
    return [str(each) if isinstance(each, DataError) else each.fields["text"] for each in found]


def test_a_folder_laid_out_as_on_the_hub_gives_its_training_split(folder: Path):
    found = list(iterate_records(folder))
    assert [dict(record.fields) for record in found] == ROWS, "without the nulls that the column's type added"
    assert [record.source for record in found] == ["set: row 1", "set: row 2", "set: row 3"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_is_read_by_its_name(split: str, folder: Path, saved: Path):
    assert texts(folder, split=split) == (["tested"] if split == "test" else ["a", "b", "c"])
    assert texts(saved, split=split) == (["a"] if split == "test" else ["a", "b", "c"])
    for place in (folder, saved):
        name = place.name if split == "train" else f"{place.name}/test"
        assert next(iter(iterate_records(place, split=split))).source == f"{name}: row 1"


def test_a_configuration_is_read_by_its_name(configured: Path, hub: str):
    for place in (configured, hub):
        assert texts(place, "long") == ["long"]
        assert texts(place, "short") == ["short"]
        assert texts(place, "short", "test") == ["tested"]


def test_the_configurations_and_splits_there_are_are_told(configured: Path, hub: str):
    for place in (configured, hub):
        for part, message in (
            ((None, None), r"data\.subset: .* has the configurations short, long; name one with --data\.subset"),
            (("brief", None), r"data\.subset: .* has no configuration 'brief'; it has short, long"),
            (("short", "dev"), r"data\.split: .* has no split 'dev'; it has train, test"),
        ):
            with pytest.raises(DataError, match=message):
                texts(place, *part)


def test_a_part_of_what_has_none_is_refused(saved: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"data\.split: .*a\.jsonl has no splits; leave --data\.split test out"):
        texts(tmp_path / "a.jsonl", split="test")
    with pytest.raises(DataError, match=r"data\.subset: .*saved has no configurations; leave --data\.subset x out"):
        texts(saved, "x")
    with pytest.raises(DataError, match=r"data\.split: .*saved has no split 'dev'; it has train, test"):
        texts(saved, split="dev")
    with pytest.raises(DataError, match=r"data\.split: .*train has no splits"):
        texts(saved / "train", split="test")


def test_of_several_splits_none_called_train_is_chosen_for_the_user(tmp_path: Path):
    for name in ("one", "two"):
        shard(tmp_path / "data", name, [{"text": name}])
    with pytest.raises(DataError, match=r"has the splits one, two and none called train; name one with --data\.split"):
        texts(tmp_path)
    (tmp_path / "data" / "two-00000-of-00001.parquet").unlink()
    assert texts(tmp_path) == ["one"]


@pytest.mark.usefixtures("without_library")
def test_without_the_library_shards_and_saved_sets_are_read_all_the_same(folder: Path, saved: Path, configured: Path):
    assert [dict(record.fields) for record in iterate_records(folder)] == ROWS
    assert texts(folder, split="test") == ["tested"]
    assert [dict(record.fields) for record in iterate_records(saved)] == ROWS
    (configured / "README.md").unlink()
    assert texts(configured, "long") == ["long"]
    with pytest.raises(DataError, match=r"has the configurations long, short; name one with --data\.subset"):
        texts(configured)
    with pytest.raises(DataError, match="has no split 'dev'"):
        texts(configured, "short", "dev")


@pytest.mark.usefixtures("without_library")
def test_without_the_library_it_is_named_where_it_is_needed(configured: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmflow.data.library.hub_is_out_of_reach", lambda: False)
    for place in (configured, "owner/set"):
        with pytest.raises(DataError, match=r"takes the library datasets: pip install 'lmflow-core\[hub\]'"):
            texts(place)


def test_lines_of_a_set_keep_their_numbers(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\noops\n')
    (tmp_path / "test.jsonl").write_text('{"text": "b"}\n')
    assert texts(tmp_path, split="test") == ["b"]
    first, second = texts(tmp_path, split="train")
    assert first == "a"
    assert second.startswith("train.jsonl:2: not JSON")
    assert texts(tmp_path)[0] == "a", "their names say which is the one to train on"


def test_shards_beside_each_other_are_splits_whatever_other_files_there_are(tmp_path: Path):
    for split in ("train", "test"):
        shard(tmp_path, split, [{"text": split}])
    assert texts(tmp_path) == ["train"]
    (tmp_path / "more.jsonl").write_text('{"text": "more"}\n')
    assert texts(tmp_path) == ["train"]
    assert unread_files(tmp_path) == ("test-00000-of-00001.parquet, more.jsonl; --data.split test reads another split")


def test_images_are_paths_or_data_uris(tmp_path: Path, hub: str, configured: Path):
    features = datasets.Features(text=datasets.Value("string"), images=datasets.List(datasets.Image()))
    (tmp_path / "a.png").write_bytes(PNG)
    rows = datasets.Dataset.from_list([{"text": "a", "images": [str(tmp_path / "a.png")]}], features=features)
    uri = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    rows.save_to_disk(str(tmp_path / "saved"))
    [held] = iterate_records(tmp_path / "saved")
    assert held.fields["images"] == [uri]
    for name in ("short", "long"):
        rows.to_parquet(configured / name / "train-00000-of-00001.parquet")
    [named], [fetched] = iterate_records(configured, "long"), iterate_records(hub, "long")
    assert named.fields["images"] == [str(tmp_path / "a.png")]
    assert fetched.fields["images"] == [uri], "where its path would mean nothing here"


def test_what_the_library_cannot_read_is_named(saved: Path):
    next((saved / "train").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"saved/train: the library datasets cannot read it: "):
        texts(saved)


def test_each_part_has_files_and_a_fingerprint_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert [file.name for file in data_files(folder, split="test")] == ["test-00000-of-00001.parquet"]
    assert fingerprint(folder) == fingerprint(folder, split="train") != fingerprint(folder, split="test")
    monkeypatch.setattr("lmflow.data.files.hub_revision", lambda name: "1")
    assert len({fingerprint("owner/set"), fingerprint("owner/set", "a"), fingerprint("owner/set", None, "test")}) == 3


def test_the_validation_split_of_the_set_that_is_trained_on(folder: Path):
    from lmflow.data.source import validation_place

    here = str(folder)
    shard(folder / "data", "validation", [{"text": "held out"}])
    place = validation_place(DataOptions(path=here, validation=here))
    assert place is not None
    assert texts(here, place.subset, place.split) == ["held out"]
    other = validation_place(DataOptions(path="x.jsonl", split="test", validation=here))
    assert other is not None
    assert (other.path, other.split) == (here, None)
