"""Reading files of records one by one, whatever their container, found by looking at the content."""

from __future__ import annotations

import difflib
import hashlib
import json
import uuid
from pathlib import Path

from lmflow.errors import DataError

ENDINGS = (".json", ".jsonl", ".ndjson", ".txt", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")
PACKED = (".bz2", ".xz", ".lz4", ".zip", ".7z")
"""Compressions that are not read."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json")
"""Files that tell of data and hold none."""


def data_files(path: Path) -> list[Path]:
    """The files that `path` stands for. Raises DataError where there is none."""
    if path.is_file():
        return [_unpacked(path)]
    if not path.exists():
        raise DataError(f"{path} does not exist.{_nearest(path)}")
    if not path.is_dir():
        raise DataError(
            f"{path} is neither a file nor a directory, and data is read more than once: write it to a file."
        )
    if (path / "dataset_dict.json").is_file():
        return data_files(path / _training_split(path))
    files = sorted(_unpacked(file) for file in path.iterdir() if file.is_file())
    found = [file for file in files if ending(file) in ENDINGS and file.name not in DESCRIPTIONS]
    if (path / "state.json").is_file():  # saved by the library datasets
        found = [file for file in found if ending(file) == ".arrow"]
    if not found:
        raise DataError(
            f"{path} holds no data file ({', '.join(ENDINGS)}, each also {' and '.join(COMPRESSED)}); its directories "
            "are not looked into."
        )
    return found


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the file at `path`, in hexadecimal; of several, of names and sums; of a hub's, of its revision."""
    if on_hub(path):
        return hashlib.sha256(f"{path} {hub_revision(str(path))}".encode()).hexdigest()
    files = data_files(Path(path))
    sums = [_sum(file) for file in files]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256(json.dumps([[file.name, each] for file, each in zip(files, sums)]).encode()).hexdigest()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_revision(name: str) -> str:
    """The commit that a data set on the hub is at; where that cannot be told, what no other call returns."""
    try:
        from huggingface_hub import dataset_info

        return str(dataset_info(name).sha)
    except Exception:  # whatever keeps the hub from answering: the records then count as not seen before
        return uuid.uuid4().hex


def size_of(path: str | Path) -> int:
    """Bytes of all files at `path`; 0 for a data set on the hub."""
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: str | Path) -> list[Path]:
    """The files at `path`; none for a data set on the hub."""
    return [] if on_hub(path) else data_files(Path(path))


def on_hub(path: str | Path) -> bool:
    """Whether `path` means a data set on the hub, as nothing of that name is on this machine."""
    return not Path(path).exists() and is_hub_name(str(path))


def unread_folders(path: str | Path) -> list[str]:
    """Names of the folders directly in the directory at `path` that hold data files too: they are not looked into."""
    place = Path(path)
    if not place.is_dir() or (place / "dataset_dict.json").is_file():
        return []
    folders = sorted(each for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [folder.name for folder in folders if any(ending(each) in ENDINGS for each in folder.glob("*.*"))]


def is_hub_name(path: str) -> bool:
    """Whether `path` looks like OWNER/NAME on the hub rather than a place on this machine."""
    owner, slash, name = path.partition("/")
    local = path.startswith((".", "/", "~")) or Path(owner).exists() or "/" in name
    return bool(slash and owner and name) and not local and Path(name).suffix not in (*ENDINGS, *COMPRESSED)


def ending(file: Path) -> str:
    """The file's ending without that of a compression."""
    name = file.name
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix.lower()


def _unpacked(file: Path) -> Path:
    """The file. Raises DataError for data compressed in a way that is not read, which must not be left out silently."""
    if file.suffix.lower() in PACKED and Path(file.stem).suffix.lower() in ENDINGS:
        raise DataError(f"{file}: {file.suffix} is not read; unpack it, or compress it as {' or '.join(COMPRESSED)}")
    return file


def _training_split(path: Path) -> str:
    try:
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path / 'dataset_dict.json'}: does not name the parts of a saved data set") from None
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return str(splits[0])
    raise DataError(f"{path} has the parts {', '.join(map(str, splits))} and none called train; name one: {path}/NAME")


def _nearest(path: Path) -> str:
    """A suggestion for a mistyped path, empty if nothing is near."""
    if not path.parent.is_dir():
        return f" Nor does the directory {path.parent}."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
