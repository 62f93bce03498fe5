"""Checkpoints that are complete or absent, never half-written, and known to be undamaged when they are used."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmflow.atomic import atomic_directory, remove_atomically, remove_remains, write_atomically
from lmflow.errors import TrainingError

STEP_NAME = re.compile(r"step-(\d{6,})$")
MANIFEST = "manifest.json"
"""Size and SHA-256 of every other file; written last."""
WEIGHTS, OPTIMIZER_STATE, OPTIMIZER_SCALARS, STATE = (
    "trainable.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
)
FILES = (OPTIMIZER_SCALARS, OPTIMIZER_STATE, STATE, WEIGHTS)
SCORE = "eval_loss"
"""The entry of a checkpoint's state by which the best one is known; the lowest is."""


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on as if it had never stopped.

    `weights` are the trainable parameters by name; `optimizer` is the optimizer's state, tensors and numbers, of each
    of them; `state` holds plain values: the step, the tokens seen, and what the aligner asked to keep. Nothing in it
    depends on how many processes made it.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]


class DamagedCheckpoint(TrainingError):
    """A checkpoint does not hold what was written to it."""


class DamagedManifest(DamagedCheckpoint):
    """Nothing says what was written to a checkpoint."""


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints below `directory`, oldest first."""
    found = [path for path in directory.glob("step-*") if STEP_NAME.search(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step a checkpoint was made after."""
    return int(path.name.removeprefix("step-"))


def save_checkpoint(directory: Path, step: int, checkpoint: Checkpoint, *, keep: int, keep_best: bool = False) -> Path:
    """Write `step-NNNNNN` below `directory` and delete all but the newest `keep`, and with `keep_best` the best.

    It is whole or absent, so a killed process or a full disk leaves the earlier checkpoints as they were. Raises
    OSError when the disk is full.
    """
    remove_remains(directory)
    target = directory / f"step-{step:06d}"
    with atomic_directory(target, replace=True) as partial:  # it is there already after a resume from an earlier one
        _write(partial, checkpoint)
    found = list_checkpoints(directory)
    kept = {*found[-keep:], *([best_checkpoint(directory)] if keep_best else [])}
    for old in found:
        if old not in kept:
            remove_atomically(old)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote. Raises DamagedCheckpoint, naming the file, where it is not that."""
    check_manifest(path)
    return _read(path)


def _read(path: Path) -> Checkpoint:
    numbers: dict[str, dict[str, Any]] = json.loads((path / OPTIMIZER_SCALARS).read_text())
    for key, tensor in load_file(path / OPTIMIZER_STATE).items():
        name, _, entry = key.rpartition("/")
        numbers[name][entry] = tensor
    return Checkpoint(load_file(path / WEIGHTS), numbers, read_state(path))


def read_state(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint."""
    state: dict[str, Any] = json.loads((path / STATE).read_text())
    return state


def newest_checkpoint(directory: Path, tell: Callable[[str], None]) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that is undamaged; `tell` is given a sentence on each that is not. None if there is none.

    Where none has a manifest that describes it, the newest whose files can all be read is used, and described anew.
    Raises TrainingError where there are checkpoints and all are damaged.
    """
    found = list_checkpoints(directory)
    not_described: list[Path] = []
    damages: list[str] = []
    for path in reversed(found):
        try:
            loaded = load_checkpoint(path)
        except DamagedCheckpoint as error:
            damages.append(str(error))
            not_described += [path] if isinstance(error, DamagedManifest) else []
            continue
        for damage in damages:
            tell(f"{damage}; the checkpoint before it is used")
        return path, loaded
    for path in not_described:
        with suppress(Exception):  # whatever cannot be read is damaged
            loaded = _read(path)
            tell(
                f"{path / MANIFEST} was damaged and is written anew; the files beside it can all be read, and are used"
            )
            write_manifest(path)
            return path, loaded
    if found:
        raise TrainingError(
            f"Every checkpoint in {directory} is damaged; start again with --overwrite.\n" + "\n".join(damages)
        )
    return None


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the lowest loss on the held-out samples; None where none was evaluated."""
    scored = []
    for path in list_checkpoints(directory):
        try:
            score = read_state(path).get(SCORE)
        except (OSError, ValueError, AttributeError):  # damaged: whoever loads it will say so
            continue
        if score is not None and math.isfinite(score):
            scored.append((float(score), path))
    return min(scored)[1] if scored else None


def check_manifest(path: Path) -> None:
    """Compare every file with the manifest. Raises DamagedCheckpoint naming the first that differs."""
    for name, expected in _manifest(path).items():
        try:
            found = _described(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"Checkpoint {path} is damaged: {name}: {error.strerror}") from None
        if found != expected:
            what = "has another size" if found["bytes"] != expected.get("bytes") else "has other content"
            raise DamagedCheckpoint(f"Checkpoint {path} is damaged: {name} {what} than when it was written")


def write_manifest(path: Path) -> None:
    """Describe the files of a checkpoint as they are now."""
    described = {name: _described(path / name) for name in FILES}
    write_atomically(path / MANIFEST, json.dumps(described, indent=2))


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """What was written to a checkpoint, by file. Raises DamagedManifest where that is not said of all files."""
    try:
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        listed = None
    whole = isinstance(listed, dict) and listed.keys() >= set(FILES)
    if not whole or not all(isinstance(each, dict) for each in listed.values()):
        raise DamagedManifest(f"Checkpoint {path} is damaged: it has no readable {MANIFEST}")
    return dict(listed)


def _write(directory: Path, checkpoint: Checkpoint) -> None:
    optimizer_state: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, entries in checkpoint.optimizer.items():
        tensors = {key for key, value in entries.items() if isinstance(value, torch.Tensor)}
        optimizer_state |= {f"{name}/{key}": entries[key] for key in tensors}
        numbers[name] = {key: value for key, value in entries.items() if key not in tensors}
    save_file(dict(checkpoint.weights), directory / WEIGHTS)
    save_file(optimizer_state, directory / OPTIMIZER_STATE)
    (directory / OPTIMIZER_SCALARS).write_text(json.dumps(numbers))
    (directory / STATE).write_text(json.dumps(dict(checkpoint.state)))
    write_manifest(directory)


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}
