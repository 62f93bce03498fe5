"""Checkpoints that are complete or absent, never half-written, and known to be undamaged when they are used."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints below `directory`, oldest first."""
    found = [path for path in directory.glob("step-*") if STEP_NAME.search(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step a checkpoint was made after."""
    return int(path.name.removeprefix("step-"))


def save_checkpoint(directory: Path, step: int, checkpoint: Checkpoint, *, keep: int, keep_best: bool = False) -> Path:
    """Write `step-NNNNNN` below `directory` and delete all but the newest `keep`, and with `keep_best` the best.

    Everything is written to a temporary directory first and moved into place by one rename, so a killed process
    or a full disk leaves the earlier checkpoints as they were. Raises OSError when the disk is full.
    """
    _remove_remains(directory)
    target = directory / f"step-{step:06d}"
    partial = _out_of_sight(target)
    partial.mkdir(parents=True)
    try:
        _write(partial, checkpoint)
        if target.exists():  # the same step again, after a resume from an earlier one
            _remove(target)
        os.replace(partial, target)
        flush_to_disk(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    found = list_checkpoints(directory)
    kept = {*found[-keep:], *([best_checkpoint(directory)] if keep_best else [])}
    for old in found:
        if old not in kept:
            _remove(old)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote. Raises DamagedCheckpoint, naming the file, where it is not that."""
    check_manifest(path)
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
    """The newest checkpoint that is undamaged; `emit` is given a sentence on each that is not. None if there is none.

    Raises TrainingError where there are checkpoints and all are damaged.
    """
    found = list_checkpoints(directory)
    for path in reversed(found):
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpoint as error:
            tell(f"{error}; the checkpoint before it is used")
    if found:
        raise TrainingError(f"Every checkpoint in {directory} is damaged; start again with --overwrite.")
    return None


def best_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the lowest loss on the held-out samples; None where none was evaluated."""
    scored = []
    for path in list_checkpoints(directory):
        try:
            score = read_state(path).get(SCORE)
        except (OSError, ValueError):  # damaged: whoever loads it will say so
            continue
        if score is not None and math.isfinite(score):
            scored.append((float(score), path))
    return min(scored)[1] if scored else None


def check_manifest(path: Path) -> None:
    """Compare every file with the manifest. Raises DamagedCheckpoint naming the first that differs."""
    try:
        listed: dict[str, dict[str, Any]] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise DamagedCheckpoint(f"Checkpoint {path} is damaged: it has no readable {MANIFEST}") from None
    for name, expected in listed.items():
        try:
            found = _described(path / name)
        except OSError as error:
            raise DamagedCheckpoint(f"Checkpoint {path} is damaged: {name}: {error.strerror}") from None
        if found != expected:
            what = "has another size" if found["bytes"] != expected["bytes"] else "has other content"
            raise DamagedCheckpoint(f"Checkpoint {path} is damaged: {name} {what} than when it was written")


def flush_to_disk(file: Path) -> None:
    """Make the operating system write `file` out, so that a rename after it never exposes an empty file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    files = sorted(directory.iterdir())
    for file in files:
        flush_to_disk(file)
    (directory / MANIFEST).write_text(json.dumps({file.name: _described(file) for file in files}, indent=2))
    flush_to_disk(directory / MANIFEST)


def _described(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _out_of_sight(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove(path: Path) -> None:
    """Delete a checkpoint; one half deleted is never seen, even if the process is killed meanwhile."""
    hidden = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def _remove_remains(directory: Path) -> None:
    """What a killed process was writing or deleting."""
    for remains in directory.glob(".step-*"):
        shutil.rmtree(remains, ignore_errors=True)
