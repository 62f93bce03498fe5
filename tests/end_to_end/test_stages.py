"""Recipes of several stages as they are typed: killed, interrupted, resumed, in several processes, and used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Lmflow = Callable[..., Any]

RECIPE = """
model: demo
data: {limit: 48}
training: {batch_size: 4, max_steps: 6, checkpoint_every: 2}
aligner: {name: sft, heldout_prompts: 2, max_new_tokens: 4}
stages:
  sft:
    tuner: {name: lora, rank: 2}
  more:
    model: stage:sft
    tuner: full
"""
RUN = ("run", "pipeline.yaml", "--output", "out", "--quiet")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.yaml").write_text(RECIPE)
    return tmp_path


def weights(whole: Path) -> dict[str, bytes]:
    files = sorted([*whole.glob("stages/*/adapter/*.safetensors"), *whole.glob("stages/*/model/*.safetensors")])
    assert len(files) == 2
    return {
        f"{file.parts[-3]} {name}": tensor.numpy().tobytes()
        for file in files
        for name, tensor in load_file(file).items()
    }


def start(place: Path, environment: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("lmflow")), *words]
    return subprocess.Popen(
        command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_steps(process: subprocess.Popen[str], metrics: Path) -> None:
    """Return once a stage has taken three steps, and so has a checkpoint; fails if the command ends before."""
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_weights(lmflow: Lmflow, place: Path, environment: Any):
    done = lmflow(*RUN[:-1], "--json")
    assert done.code == 0, done.err
    assert list(done.record["stages"]) == ["sft", "more"]
    assert done.record["status"] == "completed"
    expected = weights(place / "out")
    for name in ("sft", "more"):
        resume = ["--resume"] if name == "more" else []
        process = start(place, environment, "run", "pipeline.yaml", "--output", "killed", "--quiet", *resume)
        wait_for_steps(process, place / "killed" / "stages" / name / "metrics.jsonl")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    again = lmflow("run", "pipeline.yaml", "--output", "killed", "--resume")
    assert again.code == 0, again.err
    assert "stage 1 of 2: sft is finished already" in again.err
    assert "Stage more completed" in again.out
    assert weights(place / "killed") == expected
    use = lmflow("generate", "--model", "killed", "--prompt", "2 + 2 =", "--sampling.max_new_tokens", "2")
    assert use.code == 0, use.err


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_an_edited_recipe_is_refused(lmflow: Lmflow, place: Path, environment: Any):
    process = start(place, environment, *RUN)
    wait_for_steps(process, place / "out" / "stages" / "more" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Continue with: lmflow run --resume --output out\n" in err
    (place / "pipeline.yaml").write_text(RECIPE.replace("max_steps: 6", "max_steps: 7"))
    edited = lmflow(*RUN, "--resume")
    assert edited.code == 2
    assert "stage sft was begun with another recipe:\n  training.max_steps: 6 in the run, 7 now" in edited.err
    assert lmflow("run", "--resume", "--output", "out", "--quiet").code == 0
    assert len(weights(place / "out")) > 2


@pytest.mark.slow
def test_each_stage_in_two_processes(lmflow: Lmflow, place: Path):
    done = lmflow(*RUN[:-1], "--json", "--launch.processes", "2", env={"OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.err
    assert [each["status"] for each in done.record["stages"].values()] == ["completed", "completed"]
    assert done.err == ""
    assert '"processes": 2' in (place / "out" / "stages" / "more" / "run.json").read_text()


def test_mistakes_leave_nothing_behind(lmflow: Lmflow, place: Path):
    (place / "pipeline.yaml").write_text(RECIPE.replace("tuner: full", "tuner: {name: lora, rnak: 2}"))
    done = lmflow(*RUN)
    assert done.code == 2
    assert "stage more: pipeline.yaml:11: tuner.rnak: unknown option; did you mean tuner.rank?" in done.err
    assert not (place / "out").exists()
