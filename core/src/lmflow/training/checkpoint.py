"""Checkpoints that are complete or absent, never half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STEP_NAME = re.compile(r"step-(\d{6,})$")


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on as if it had never stopped.

    `weights` are the trainable parameters by name; `optimizer` is its state_dict; `state` holds plain values:
    the step, the tokens seen, and what the aligner asked to keep.
    """

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints below `directory`, oldest first."""
    found = [path for path in directory.glob("step-*") if STEP_NAME.search(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(directory: Path, step: int, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `step-NNNNNN` below `directory` and delete all but the newest `keep`.

    Everything is written to a temporary directory first and moved into place by one rename, so a killed process
    or a full disk leaves the earlier checkpoints as they were. Raises OSError when the disk is full.
    """
    target = directory / f"step-{step:06d}"
    partial = directory / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(dict(checkpoint.weights), partial / "trainable.safetensors")
        torch.save(dict(checkpoint.optimizer), partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps(dict(checkpoint.state)))
        for file in partial.iterdir():
            flush_to_disk(file)
        if target.exists():  # the same step again, after a resume: the new one replaces it
            shutil.rmtree(target)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in list_checkpoints(directory)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote."""
    return Checkpoint(
        weights=load_file(path / "trainable.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        state=json.loads((path / "state.json").read_text()),
    )


def flush_to_disk(file: Path) -> None:
    """Make the operating system write `file` out, so that a rename after it never exposes an empty file."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
