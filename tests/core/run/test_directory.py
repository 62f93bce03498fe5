"""Who may write to a run's directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lmflow.errors import RunDirectoryError
from lmflow.run.directory import FollowedDirectory, RunDirectory


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    directory = RunDirectory(path)
    directory.recipe.write_text("tuner: lora\n")
    directory.write_record({"status": "completed"})
    directory.append_metrics({"step": 1, "loss": 2.0})
    directory.close()
    return path


def test_a_finished_run_is_not_overwritten_unasked(finished: Path):
    with pytest.raises(RunDirectoryError, match=r"already holds a run \(completed\).*--resume.*--overwrite"):
        RunDirectory(finished)


def test_overwrite_removes_the_run(finished: Path):
    (finished / "notes.txt").write_text("mine")
    RunDirectory(finished, overwrite=True).close()
    assert not (finished / "run.json").exists()
    assert not (finished / "metrics.jsonl").exists()
    assert (finished / "notes.txt").read_text() == "mine"


def test_resume_keeps_everything(finished: Path):
    directory = RunDirectory(finished, resume=True)
    assert directory.read_record() == {"status": "completed"}
    directory.close()


def test_a_directory_of_other_things_is_never_touched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(RunDirectoryError, match=r"holds no run \(thesis.tex\)"):
            RunDirectory(tmp_path, **options)
    assert (tmp_path / "thesis.tex").exists()


def test_nothing_to_resume(tmp_path: Path):
    with pytest.raises(RunDirectoryError, match="holds no run to resume"):
        RunDirectory(tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_resume_and_overwrite_exclude_each_other(finished: Path):
    with pytest.raises(RunDirectoryError, match="exclude each other"):
        RunDirectory(finished, resume=True, overwrite=True)


def test_output_is_a_file(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "out")


def test_two_processes_cannot_share_one(finished: Path):
    held = RunDirectory(finished, resume=True)
    code = f"from pathlib import Path; from lmflow.run.directory import RunDirectory; RunDirectory(Path({str(finished)!r}), resume=True)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    held.close()
    assert result.returncode == 1
    assert "is in use by another run (process" in result.stderr
    RunDirectory(finished, resume=True).close()


def test_metrics_of_repeated_steps_are_dropped(finished: Path):
    directory = RunDirectory(finished, resume=True)
    for step in (2, 3):
        directory.append_metrics({"step": step})
    directory.drop_metrics_after(2)
    directory.close()
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"[]", b"3", b"\xff\xfe\x00", b'{"status": "comple', b"[" * 20_000])
def test_a_damaged_record_is_set_aside(finished: Path, damage: bytes):
    (finished / "run.json").write_bytes(damage)
    (finished / "run.json.damaged").write_text("of an earlier time")
    directory = RunDirectory(finished, resume=True)
    directory.close()
    assert directory.read_record() == {}
    assert (finished / "run.json.damaged").read_bytes() == damage
    [note] = directory.notes
    assert note.startswith(f"{finished / 'run.json'} was damaged: it is kept as run.json.damaged")
    RunDirectory(finished, overwrite=True).close()
    assert not (finished / "run.json.damaged").exists()


@pytest.mark.parametrize(
    "line", [b"\xff\x00\xfe", b"[1, 2]", b"null", b'{"step": "three"}', b'{"step": nan', b"[" * 20_000]
)
def test_what_can_be_read_of_damaged_metrics_is_kept(finished: Path, line: bytes):
    file = finished / "metrics.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 2}\n{"step": 3}\n{"st'
    file.write_bytes(content)
    directory = RunDirectory(finished, resume=True)
    told = directory.drop_metrics_after(2)
    directory.close()
    assert told is not None
    assert "metrics.jsonl was damaged" in told
    assert [json.loads(each)["step"] for each in file.read_text().splitlines()] == [1, 2]
    assert (finished / "metrics.jsonl.damaged").read_bytes() == content


@pytest.mark.parametrize("damage", ["a directory", "empty"])
def test_metrics_of_which_nothing_can_be_read(finished: Path, damage: str):
    file = finished / "metrics.jsonl"
    file.unlink()
    if damage == "empty":
        file.touch()
    else:
        file.mkdir()
    directory = RunDirectory(finished, resume=True)
    assert (directory.drop_metrics_after(2) is None) == (damage == "empty")
    directory.append_metrics({"step": 1})
    directory.close()
    assert file.read_text() == '{"step": 1}\n'


def test_what_killed_processes_left_goes_when_a_run_is_opened(finished: Path):
    remains = [
        finished / ".run.json.0123abcd.partial",
        finished / ".result.0123abcd.partial",
        finished / "checkpoints" / ".step-000003.fedc9876.partial",
        finished / "samples" / ".iteration-0001.jsonl.fedc9876.partial",
    ]
    for each in remains:
        each.mkdir()
    RunDirectory(finished, resume=True).close()
    assert not any(each.exists() for each in remains)


def test_a_directory_that_another_process_writes_is_only_read(finished: Path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    opened = RunDirectory(finished, resume=True)
    followed = FollowedDirectory(finished)  # no second lock, though another has it
    assert followed.checkpoints == opened.checkpoints
    assert followed.read_record() == {"status": "completed"}
    followed.write_recipe("tuner: full\n")
    followed.write_record({"status": "failed"})
    followed.append_metrics({"step": 2})
    followed.drop_metrics_after(0)
    followed.write_comparison([{}])
    assert followed.write_samples(1, [{}]) == finished / "samples" / "iteration-0001.jsonl"
    followed.close()
    opened.close()
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == {path: content for path, content in before.items() if path.name != ".lock"}


def test_a_place_that_cannot_be_made_is_told_as_such(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot be written to: Not a directory\. Choose another"):
        RunDirectory(tmp_path / "file" / "run")
