"""Checkpoints are complete or absent, and a damaged one is never used."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmflow import atomic
from lmflow.errors import TrainingError
from lmflow.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpoint,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def example(step: int, eval_loss: float | None = None) -> Checkpoint:
    optimizer_state = {"exp_avg": torch.full((2,), step / 2), "step": torch.tensor(float(step)), "times": 3}
    return Checkpoint(
        {"a.w": torch.full((2,), float(step))}, {"a.w": optimizer_state}, {"step": step, "eval_loss": eval_loss}
    )


def names(directory: Path) -> list[str]:
    return [path.name for path in list_checkpoints(directory)]


def test_round_trip(tmp_path: Path):
    path = save_checkpoint(tmp_path, 7, example(7), keep=2)
    assert path.name == "step-000007"
    loaded = load_checkpoint(path)
    assert loaded.weights["a.w"].tolist() == [7.0, 7.0]
    assert loaded.state["step"] == 7
    found = loaded.optimizer["a.w"]
    assert (found["exp_avg"].tolist(), found["step"].item(), found["times"]) == ([3.5, 3.5], 7.0, 3)


def test_nothing_in_it_can_run_code(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, example(1), keep=1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (1, 2, 10, 9999999):
        save_checkpoint(tmp_path, step, example(step), keep=2)
    assert names(tmp_path) == ["step-000010", "step-9999999"]


def test_the_best_is_kept_as_well(tmp_path: Path):
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        save_checkpoint(tmp_path, step, example(step, loss), keep=1, keep_best=True)
    assert names(tmp_path) == ["step-000002", "step-000005"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-000002"


def test_the_same_step_again_replaces_it(tmp_path: Path):
    for loss in (1.0, 2.0):
        save_checkpoint(tmp_path, 3, example(3, loss), keep=2)
    assert load_checkpoint(tmp_path / "step-000003").state["eval_loss"] == 2.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, 1, example(1), keep=2)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "flush_to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, example(2), keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000001"]


def test_what_a_killed_process_left_is_not_listed_and_goes_with_the_next(tmp_path: Path):
    for name in (".step-000003.0123abcd.partial", ".step-000001.fedc9876.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "step-000009").write_text("a file is no checkpoint")
    assert list_checkpoints(tmp_path) == []
    (tmp_path / "step-000009").unlink()
    save_checkpoint(tmp_path, 4, example(4), keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000004"]


@pytest.mark.parametrize("file", ["trainable.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_used(tmp_path: Path, file: str, damage: str):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, example(step), keep=2)
    victim = tmp_path / "step-000002" / file
    content = bytearray(victim.read_bytes())
    if damage == "gone":
        victim.unlink()
    else:
        content[-1] ^= 1
        victim.write_bytes(content[:-1] if damage == "cut" else content)
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert found[1].state["step"] == 1
    [sentence] = said
    assert "step-000002" in sentence
    assert file in sentence
    assert "the checkpoint before it is used" in sentence


def test_without_a_readable_manifest_it_is_damaged(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, example(1), keep=1)
    (path / MANIFEST).write_text('{"state')
    with pytest.raises(DamagedCheckpoint, match=MANIFEST):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\x00", b'{"state.json": 3}', b"[" * 9999])
def test_a_damaged_manifest_is_none(tmp_path: Path, content: bytes):
    for step in (1, 2):
        (save_checkpoint(tmp_path, step, example(step), keep=2) / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=MANIFEST):
        load_checkpoint(tmp_path / "step-000002")
    said: list[str] = []
    found = newest_checkpoint(tmp_path, said.append)
    assert found is not None
    assert (found[0].name, found[1].state["step"]) == ("step-000002", 2), "what can be read is no loss"
    assert ["is written anew" in sentence for sentence in said] == [True]
    assert load_checkpoint(tmp_path / "step-000002").weights["a.w"].tolist() == [2.0, 2.0]


def test_one_with_a_manifest_goes_before_a_newer_one_without(tmp_path: Path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, example(step), keep=2)
    (tmp_path / "step-000002" / MANIFEST).write_text("{}")
    found = newest_checkpoint(tmp_path, lambda _: None)
    assert found is not None
    assert found[1].state["step"] == 1


def test_without_a_manifest_a_file_that_cannot_be_read_is_not_used(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, example(1), keep=1)
    (path / MANIFEST).unlink()
    (path / "trainable.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"Every checkpoint in .* is damaged"):
        newest_checkpoint(tmp_path, lambda _: None)


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path):
    assert newest_checkpoint(tmp_path, print) is None
    (save_checkpoint(tmp_path, 1, example(1), keep=1) / "state.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"Every checkpoint in .* is damaged"):
        newest_checkpoint(tmp_path, lambda _: None)


WRITERS = """
import os, sys
from pathlib import Path
import torch
from lmflow.training.checkpoint import Checkpoint, save_checkpoint

def write():
    step = 0
    while True:
        step += 1
        values = {"w": torch.full((20_000,), float(step))}
        save_checkpoint(Path(sys.argv[1]), step, Checkpoint(values, {"w": values}, {"step": step}), keep=2)
        print(step, flush=True)

for _ in sys.stdin:
    writer = os.fork()
    if writer == 0:
        write()
    print("writer", writer, flush=True)
    os.waitpid(writer, 0)
    print("ended", flush=True)
"""
"""For each line it is given, a process that writes until it is killed; all are forks of one, which imports torch."""


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_whole_ones(tmp_path: Path):
    """A writer is killed ten times at moments spread over its work; what is listed is always undamaged."""
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for attempt in range(10):
            writers.stdin.write("another\n")
            writers.stdin.flush()
            steps, writer = [], 0
            while len(steps) < 2 + attempt or not writer:
                line = writers.stdout.readline().split()
                if line[0] == "writer":
                    writer = int(line[1])
                else:
                    steps.append(int(line[0]))
            os.kill(writer, signal.SIGKILL)
            while writers.stdout.readline() != "ended\n":
                pass
            found = newest_checkpoint(tmp_path, lambda sentence: pytest.fail(sentence))
            assert found is not None
            assert found[1].state["step"] >= steps[-1]
            for path in list_checkpoints(tmp_path):
                assert json.loads((path / "state.json").read_text())["step"] == int(path.name[5:])
                load_checkpoint(path)
            for path in tmp_path.iterdir():
                shutil.rmtree(path)
        writers.stdin.close()
