"""Which weights a model has, by their content: kept with what is trained on them, and compared before it is used.

Of files that are large altogether not all is read: of each tensor name, dtype and shape, and the beginning, the middle
and the end of its values. Whatever trains, merges, rounds or replaces weights changes nearly every number of a tensor,
so other weights are told from these in well under a second for many gigabytes. A single number that is changed between
those blocks is not seen. How the tensors are spread over files does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow.atomic import write_atomically
from lmflow.errors import LmflowError
from lmflow.models.source import ModelSource, asks_hub

BASE = "base_weights.json"
"""Beside an adapter: where the weights lie that it was trained on, and which they are."""
WHOLE = 64 << 20
"""Bytes up to which all values are read."""
BLOCK = 4096
"""Bytes of each block that is read of a tensor, or of a file that is not of safetensors."""
BLOCKS = 256
"""Blocks that are read of a file that is not of safetensors."""


@dataclass(frozen=True)
class BaseWeights:
    """The weights that something was trained on."""

    path: str
    fingerprint: str | None

    def __str__(self) -> str:
        return f"{self.path} (fingerprint {(self.fingerprint or 'unknown')[:12]})"


def fingerprint(source: ModelSource) -> str | None:
    """A digest of the weights at a place; None where no files of weights are found there."""
    place = directory_of(source)
    return None if place is None else fingerprint_of(weight_files(place))


def directory_of(source: ModelSource) -> Path | None:
    """Where the files of a model are: its directory, or what was fetched of it from the hub."""
    here = Path(source.path).expanduser()
    if here.is_dir():
        return here
    if not asks_hub(source.path):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
    return Path(found).parent if isinstance(found, str) else None


def weight_files(directory: Path) -> list[Path]:
    """The files of weights in a model's or an adapter's directory, heads beside them included."""
    found = sorted(directory.glob("*.safetensors")) or [
        *sorted(directory.glob("pytorch_model*.bin")),
        *sorted(directory.glob("adapter_model*.bin")),
    ]
    return [*found, *sorted(directory.glob("heads/*.safetensors"))]


def fingerprint_of(files: Sequence[Path]) -> str | None:
    """A digest of the tensors in these files; None where there are no files."""
    whole = sum(file.stat().st_size for file in files) <= WHOLE
    parts = sorted(part for file in files for part in _parts(file, whole))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if parts else None


def combined(*fingerprints: str | None) -> str | None:
    """The fingerprint of a model made of several; None where one of them has none."""
    known = [each for each in fingerprints if each is not None]
    return hashlib.sha256(" ".join(known).encode()).hexdigest() if len(known) == len(fingerprints) else None


def _parts(file: Path, whole: bool) -> Iterator[str]:
    """A line for each tensor of a file; of a file in another format than safetensors, one for all of it."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if file.suffix != ".safetensors":
            spans = (
                [(0, size)] if whole else [(size * n // BLOCKS, BLOCK) for n in range(BLOCKS)] + [(size - BLOCK, BLOCK)]
            )
            yield f"{file.name} {size} {_digest(opened, spans)}"
            return
        try:
            length = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(length))
            tensors = [(name, each, *each["data_offsets"]) for name, each in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise LmflowError(f"{file} is damaged: {error}. Copy it again from where it was saved.") from error
        for name, each, start, end in tensors:
            begin, count = 8 + length + start, end - start
            spans = [(begin, count)] if whole or count <= 3 * BLOCK else _sampled(begin, count)
            yield f"{name} {each.get('dtype')} {each.get('shape')} {_digest(opened, spans)}"


def _sampled(begin: int, count: int) -> list[tuple[int, int]]:
    """Beginning, middle and end of `count` bytes from `begin` on."""
    return [(begin + offset, BLOCK) for offset in (0, (count - BLOCK) // 2, count - BLOCK)]


def _digest(opened: Any, spans: Sequence[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for begin, count in spans:
        opened.seek(begin)
        digest.update(opened.read(count))
    return digest.hexdigest()


# Beside an adapter


def write_base(directory: Path, base: BaseWeights) -> None:
    """Keep beside the adapter in `directory` which weights it was trained on."""
    text = json.dumps({"path": base.path, "fingerprint": base.fingerprint}, indent=2)
    write_atomically(directory / BASE, text + "\n")


def read_base(directory: Path) -> BaseWeights | None:
    """Which weights the adapter in `directory` was trained on; None where it does not say. Raises LmflowError."""
    file = directory / BASE
    if not file.is_file():
        return None
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return BaseWeights(str(found["path"]), found["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LmflowError(f"{file} is damaged: {error}. Copy it again from where the adapter was saved.") from error


def differ(before: str | None, now: str | None) -> bool:
    """Whether two fingerprints are known to be those of different weights."""
    return before is not None and now is not None and before != now
