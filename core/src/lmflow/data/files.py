"""Reading files of records one by one, whatever their container, found by looking at the content."""

from __future__ import annotations

import difflib
import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from lmflow.data.endings import COMPRESSED, ENDINGS, ending, is_data
from lmflow.data.layout import choose_named, is_laid_out, is_saved, layout_files, named_splits
from lmflow.data.library import choose_split
from lmflow.errors import DataError

UNKNOWN = "unknown-"
"""How the fingerprint begins of data that cannot be told from other data."""
PACKED = (".bz2", ".xz", ".lz4", ".zip", ".7z")
"""Compressions that are not read."""


def data_files(path: Path, subset: str | None = None, split: str | None = None) -> list[Path]:
    """The files that `path` stands for, of a data set that has configurations and splits those of the part.

    Without a name the split called train is meant, or the only one. Raises DataError where there is none.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist.{_nearest(path)}")
    if not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{path} is neither a file nor a directory, and data is read more than once: write it to a file."
        )
    if (saved := saved_folder(path, split)) is not None:
        _refuse_part(path, subset, None)
        return [file for file in _files_in(saved) if ending(file) == ".arrow"]
    if subset is None and (splits := named_splits(path)):
        return choose_named(path, splits, split)
    if is_laid_out(path, subset, split):
        return layout_files(path, subset, split)
    _refuse_part(path, subset, split)
    return _files_in(path) if path.is_dir() else [_unpacked(path)]


def _refuse_part(path: Path, subset: str | None, split: str | None) -> None:
    """Raise DataError where a part is asked for of what has none."""
    for name, value in (("subset", subset), ("split", split)):
        if value is not None:
            parts = "configurations" if name == "subset" else "splits"
            raise DataError(f"data.{name}: {path} has no {parts}; leave --data.{name} {value} out")


def saved_folder(path: Path, split: str | None = None) -> Path | None:
    """Where the data set lies that the library datasets saved to `path`, or one of its splits; None for other places.

    Raises DataError with the splits there are where another is asked for.
    """
    if (path / "dataset_dict.json").is_file():
        return path / choose_split(str(path), _saved_splits(path), split)
    if not (path / "state.json").is_file():
        return None
    _refuse_part(path, None, split)
    return path


def _files_in(path: Path) -> list[Path]:
    """The files of data directly in a directory. Raises DataError where there is none."""
    found = [file for file in sorted(_unpacked(each) for each in path.iterdir() if each.is_file()) if is_data(file)]
    if not found:
        raise DataError(
            f"{path} holds no data file ({', '.join(ENDINGS)}, each also {' and '.join(COMPRESSED)}); its directories "
            "are not looked into."
        )
    return found


def fingerprint(path: str | Path, subset: str | None = None, split: str | None = None) -> str:
    """SHA-256 of the file at `path`, in hexadecimal; of several, of names and sums; of a hub's, of its revision.

    Of a data set on the hub whose revision cannot be told, what no other call returns; see `is_known`.
    """
    if on_hub(path):
        revision = hub_revision(str(path))
        if revision is None:
            return f"{UNKNOWN}{uuid.uuid4().hex}"
        part = "".join(f" {each}" for each in (subset, split) if each is not None)
        return hashlib.sha256(f"{path} {revision}{part}".encode()).hexdigest()
    files = data_files(Path(path), subset, split)
    sums = [_sum(file) for file in files]
    if len(sums) == 1:
        return sums[0]
    return hashlib.sha256(json.dumps([[file.name, each] for file, each in zip(files, sums)]).encode()).hexdigest()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_known(fingerprint: str | None) -> bool:
    """Whether a fingerprint tells the data from other data."""
    return fingerprint is not None and not fingerprint.startswith(UNKNOWN)


def hub_revision(name: str) -> str | None:
    """The commit that a data set on the hub is at; None where that cannot be told."""
    try:
        from huggingface_hub import dataset_info

        return str(dataset_info(name).sha)
    except Exception:  # whatever keeps the hub from answering: the records then count as not seen before
        return None


def size_of(path: str | Path, subset: str | None = None, split: str | None = None) -> int:
    """Bytes of all files of a place; 0 for a data set on the hub."""
    return sum(file.stat().st_size for file in files_of(path, subset, split))


def files_of(path: str | Path, subset: str | None = None, split: str | None = None) -> list[Path]:
    """The files of a place; none for a data set on the hub."""
    return [] if on_hub(path) else data_files(Path(path), subset, split)


def has_splits(path: str | Path) -> bool:
    """Whether a place is a data set with splits, of which one is read."""
    place = Path(path)
    return on_hub(path) or (place / "dataset_dict.json").is_file() or is_laid_out(place) or bool(named_splits(place))


def on_hub(path: str | Path) -> bool:
    """Whether `path` means a data set on the hub, as nothing of that name is on this machine."""
    return not Path(path).exists() and is_hub_name(str(path))


def unread_folders(path: str | Path) -> list[str]:
    """Names of the folders directly in the directory at `path` that hold data files too: they are not looked into."""
    place = Path(path)
    if not place.is_dir() or is_saved(place) or is_laid_out(place):
        return []
    folders = sorted(each for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [folder.name for folder in folders if any(ending(each) in ENDINGS for each in folder.glob("*.*"))]


def unread_files(path: str | Path, read: Sequence[str | None] = (None,)) -> str:
    """Which files directly in a directory of splits are in none of those read, and what reads them; else empty."""
    splits = named_splits(Path(path))
    if not splits:
        return ""
    used = [file for split in read for file in choose_named(Path(path), splits, split)]
    others = [name for name, files in splits.items() if files[0] not in used]
    left = [file.name for name in others for file in splits[name]]
    left += [file.name for file in _files_in(Path(path)) if all(file not in files for files in splits.values())]
    hint = f"; --data.split {' or '.join(others)} reads another split" if others else ""
    hint += f", --data.validation {path} holds out the split validation" if "validation" in others else ""
    return f"{', '.join(left)}{hint}"


def is_hub_name(path: str) -> bool:
    """Whether `path` looks like OWNER/NAME on the hub rather than a place on this machine."""
    owner, slash, name = path.partition("/")
    local = path.startswith((".", "/", "~")) or Path(owner).exists() or "/" in name
    return bool(slash and owner and name) and not local and Path(name).suffix not in (*ENDINGS, *COMPRESSED)


def _unpacked(file: Path) -> Path:
    """The file. Raises DataError for data compressed in a way that is not read, which must not be left out silently."""
    if file.suffix.lower() in PACKED and Path(file.stem).suffix.lower() in ENDINGS:
        raise DataError(f"{file}: {file.suffix} is not read; unpack it, or compress it as {' or '.join(COMPRESSED)}")
    return file


def _saved_splits(path: Path) -> list[str]:
    file = path / "dataset_dict.json"
    try:
        return [str(each) for each in json.loads(file.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{file}: does not name the parts of a saved data set") from None


def _nearest(path: Path) -> str:
    """A suggestion for a mistyped path, empty if nothing is near."""
    if not path.parent.is_dir():
        return f" Nor does the directory {path.parent}."
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
