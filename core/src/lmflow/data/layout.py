"""Folders whose files are those of splits, and of configurations: by their names, or laid out as on the hub."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from lmflow.data.endings import is_data, without_ending
from lmflow.data.library import INSTALL, choose_split, is_installed, part_files
from lmflow.errors import DataError

SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-\w+)?\.\w+")
"""How files of a split are called there: train-00000-of-00002.parquet."""
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What files call the splits that they hold."""
NUMBERED = re.compile(r"(\W|_)\d+([-_]of[-_]\d+.*)?$")
"""The end of a file's name where it is one of several."""
CARD = "README.md"
DECLARED = re.compile(r"^(configs|dataset_info):", re.MULTILINE)
"""What a data set's card says of its parts, in the YAML that it begins with."""


def named_splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split directly in a directory, where their names say so: train.jsonl and test.jsonl.

    Names may have more words, as in qa_train.csv and qa_dev.csv; a word alone, without a file of another split that is
    called the same otherwise, says nothing. Empty where none do, and for data sets that say themselves what they hold.
    """
    if not path.is_dir() or is_saved(path) or _is_declared(path):
        return {}
    found: dict[str, list[Path]] = defaultdict(list)
    alike: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in sorted(each for each in path.iterdir() if each.is_file() and is_data(each)):
        words = re.split(r"[\W_]+", NUMBERED.sub("", without_ending(file)).lower())
        said = [word for word in words if word in WORDS]
        if len(said) == 1 and said[0] in (words[0], words[-1]):
            split = WORDS[said[0]]
            found[split].append(file)
            alike[tuple(word for word in words if word not in WORDS)].add(split)
    return dict(found) if any(len(splits) > 1 for splits in alike.values()) else {}


def choose_named(path: Path, splits: Mapping[str, list[Path]], split: str | None) -> list[Path]:
    """The files of one of the `named_splits`. Raises DataError with those there are where another is asked for."""
    asked = None if split is None else WORDS.get(split.lower(), split)
    return splits[choose_split(str(path), [*splits], asked)]


def is_laid_out(path: Path, subset: str | None = None, split: str | None = None) -> bool:
    """Whether a directory is such a folder: its card says so, it holds shards and no other data, or a part is wanted.

    What is directly in it is otherwise all of the data, whatever else is there.
    """
    if not path.is_dir() or is_saved(path):
        return False
    if subset or split or _is_declared(path):
        return True
    data = [file for file in path.iterdir() if file.is_file() and is_data(file)]
    shards = _shards_in(path)
    return len(data) == sum(map(len, shards.values())) and bool(_folders_of_shards(path))


def is_saved(path: Path) -> bool:
    """Whether the library datasets saved a data set, or several as its splits, to this directory."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def layout_files(path: Path, subset: str | None, split: str | None) -> list[Path]:
    """The files of a part. Raises DataError with the configurations or splits there are where another is asked for."""
    if is_installed():
        return part_files(path, subset, split)
    folders = _folders_of_shards(path)
    if _is_declared(path) or not folders:
        raise DataError(f"{path}: finding the splits in it takes the library datasets: {INSTALL}")
    if (subset is None and len(folders) > 1) or (subset is not None and subset not in folders):
        raise DataError(f"data.subset: {path} has the configurations {', '.join(folders)}; name one with --data.subset")
    shards = folders[subset or next(iter(folders))]
    return shards[choose_split(str(path), [*shards], split)]


def _is_declared(path: Path) -> bool:
    card = path / CARD
    if not card.is_file():
        return False
    begin, mark, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    return not begin.strip() and bool(mark) and DECLARED.search(rest.partition("\n---")[0]) is not None


def _folders_of_shards(path: Path) -> dict[str, dict[str, list[Path]]]:
    """The folders with shards, the directory or those in it, by name, and the shards of each split."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    return {folder.name: shards for folder in (path, *folders) if (shards := _shards_in(folder))}


def _shards_in(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if (match := SHARD.fullmatch(file.name)) and file.is_file():
            found[match["split"]].append(file)
    return found
