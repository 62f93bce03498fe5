"""Files that are splits of one data set, by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmflow.data.containers import read_records
from lmflow.data.dataset import load_dataset
from lmflow.data.files import data_files, fingerprint, has_splits, unread_files
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.layout import named_splits
from lmflow.data.tools.check import check_data
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "completion": "a"}}\n' * 2)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train.jsonl test.jsonl", {"train": "train.jsonl", "test": "test.jsonl"}),
        ("Train.json.gz VAL.csv", {"train": "Train.json.gz", "validation": "VAL.csv"}),
        ("training.csv eval.csv", {"train": "training.csv", "validation": "eval.csv"}),
        ("train_1.csv train_2.csv valid_1.csv", {"train": "train_1.csv train_2.csv", "validation": "valid_1.csv"}),
        ("qa-train.csv qa-dev.csv x.csv", {"train": "qa-train.csv", "validation": "qa-dev.csv"}),
        ("train-en.csv test-en.csv", {"train": "train-en.csv", "test": "test-en.csv"}),
        ("dev.csv test.csv", {"validation": "dev.csv", "test": "test.csv"}),
        ("train.jsonl", {}),
        ("train.jsonl more.jsonl", {}),
        ("python_test.jsonl train_times.jsonl", {}),
        ("train_test.jsonl test_train.jsonl", {}),
        ("unit-test-1.jsonl unit-2.jsonl", {}),
    ],
)
def test_names_that_are_those_of_splits(names: str, splits: dict[str, str], tmp_path: Path):
    for name in names.split():
        (tmp_path / name).touch()
    found = {split: " ".join(file.name for file in files) for split, files in named_splits(tmp_path).items()}
    assert found == splits


def test_the_split_to_train_on_is_read_and_the_others_named(folder: Path):
    assert [file.name for file in data_files(folder)] == ["train.jsonl"]
    for split in ("dev", "validation"):
        assert [record.fields["prompt"] for record in read_records(data_files(folder, split=split)[0])] == ["dev"] * 2
    assert fingerprint(folder) != fingerprint(folder, split="test")
    assert has_splits(folder)
    (folder / "more.jsonl").touch()
    assert unread_files(folder) == (
        "dev.jsonl, test.jsonl, more.jsonl; --data.split validation or test reads another split, "
        f"--data.validation {folder} holds out the split validation"
    )
    assert unread_files(folder, ["test"]).startswith("dev.jsonl, train.jsonl, more.jsonl; --data.split validation or")
    assert unread_files(folder / "train.jsonl") == ""
    with pytest.raises(DataError, match=r"has no split 'extra'; it has validation, test, train"):
        data_files(folder, split="extra")
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"has the splits validation, test and none called train"):
        data_files(folder)


def test_what_is_held_out_may_be_its_validation_split(folder: Path):
    data = DataOptions(path=str(folder), validation=str(folder))
    dataset, summary = load_dataset(data, Formats(FORMATS), 0)
    assert {each.messages[0].content for each in dataset.train} == {"train"}
    assert {each.messages[0].content for each in dataset.heldout} == {"dev"}
    told = "not read: test.jsonl; --data.split test reads another split"
    assert told in summary.describe()
    assert [f"not read: {each}" for each in check_data(data, Formats(FORMATS), None).unread_files] == [told]


def test_a_card_has_the_last_word(folder: Path):
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n---\n")
    assert named_splits(folder) == {}
