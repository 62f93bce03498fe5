"""RAFT in two processes by the real command: each samples for its share of the prompts, and the result is one's."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ITERATIONS = 2
ARGUMENTS = {
    "tuner": "lora",
    "aligner": "raft",
    "aligner.iterations": ITERATIONS,
    "aligner.prompts": 7,  # shares of 4 and 3
    "aligner.samples": 3,
    "aligner.heldout_prompts": 5,
    "aligner.max_new_tokens": 12,
    "training.device": "cpu",
}


@pytest.mark.slow
def test_two_processes_sample_keep_and_learn_what_one_does(tmp_path: Path, shared_environment: Any):
    started = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in started}
    environment |= {"OMP_NUM_THREADS": "1"}
    options = [word for name, value in ARGUMENTS.items() for word in (f"--{name}", str(value))]
    for processes in (1, 2):
        command = [str(shared_environment.command("lmflow")), "run", *options, "--quiet"]
        command += ["--output", str(tmp_path / str(processes)), "--launch.processes", str(processes)]
        subprocess.run(command, env=environment, check=True, timeout=1200)
    for iteration in range(1, ITERATIONS + 1):
        name = f"samples/iteration-{iteration:04d}.jsonl"
        one, two = ((tmp_path / run / name).read_text() for run in ("1", "2"))
        assert one == two  # texts, rewards, and which were kept
    one, two = (json.loads((tmp_path / run / "run.json").read_text())["metrics"] for run in ("1", "2"))
    for metric in ("heldout_reward_before", "heldout_reward_after", "heldout_greedy_reward_after", "eval_loss_after"):
        assert two[metric] == pytest.approx(one[metric], abs=1e-4)
