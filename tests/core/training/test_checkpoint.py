"""Checkpoints are complete or absent."""

import errno
from pathlib import Path

import pytest
import torch

from lmflow.training import checkpoint
from lmflow.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint


def example(step: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((2,), float(step))}, {"state": {}, "param_groups": []}, {"step": step})


def test_round_trip(tmp_path: Path):
    path = save_checkpoint(tmp_path, 7, example(7), keep=2)
    assert path.name == "step-000007"
    loaded = load_checkpoint(path)
    assert loaded.weights["w"].tolist() == [7.0, 7.0]
    assert loaded.state == {"step": 7}
    assert loaded.optimizer == {"state": {}, "param_groups": []}


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 10, 9999999):
        save_checkpoint(tmp_path, step, example(step), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000010", "step-9999999"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, 1, example(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "flush_to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, example(2), keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_a_half_written_checkpoint_is_not_listed(tmp_path: Path):
    (tmp_path / ".step-000003.partial").mkdir()
    (tmp_path / ".step-000003.partial" / "state.json").write_text("{}")
    assert list_checkpoints(tmp_path) == []
