"""Bad input and faults: one clear message, no traceback, a non-zero exit, and no finished work lost."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RAFT = ["run", "--tuner", "lora", "--aligner", "raft", "--output", "out"]


def refused(done, code: int, *expected: str) -> None:
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    for text in expected:
        assert text in done.err, done.err


def test_unknown_component(lmflow):
    refused(lmflow("run", "--tuner", "lara"), 2, "lara", "lora", "full")


def test_every_mistake_at_once(lmflow, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("tuner:\n  name: lora\n  rnak: 4\ntraining:\n  learning_rate: fast\n")
    done = lmflow("run", "recipe.yaml", "--aligner.epocs", "3", "--training.batch_size", "0")
    refused(done, 2, "recipe.yaml:3", "tuner.rank", "recipe.yaml:5", "--aligner.epocs", "--training.batch_size")


def test_missing_model_and_data(lmflow, tmp_path: Path):
    refused(lmflow("run", "--model.path", "./no/model"), 2, "no/model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    refused(lmflow("run", "--data.path", "promts.jsonl"), 2, "promts.jsonl", "prompts.jsonl")


def test_malformed_record(lmflow, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": 3, "output": "b"}\n')
    refused(lmflow("run", "--data.path", "bad.jsonl"), 2, "bad.jsonl:2", "instruction")


def test_empty_data(lmflow, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    refused(lmflow("run", "--data.path", "empty.jsonl"), 2, "empty.jsonl")


def test_raft_needs_a_reward(lmflow, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    refused(lmflow("run", "--aligner", "raft", "--data.path", "p.jsonl"), 2, "--reward")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('boom')", "boom"),
        ("return [1.0]", "returned 1 scores"),
        ("return [float('nan')] * len(completions)", "nan"),
    ],
)
def test_a_reward_that_misbehaves_later_keeps_the_finished_iterations(lmflow, tmp_path: Path, body: str, expected: str):
    """The fifth batch scored is the second iteration's samples (greedy, held-out, first, held-out, second)."""
    (tmp_path / "mine.py").write_text(
        "calls = 0\n"
        "def score(prompts, completions, records):\n"
        "    global calls\n    calls += 1\n"
        f"    if calls == 5: {body}\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    small = [
        "--aligner.prompts",
        "4",
        "--aligner.samples",
        "2",
        "--aligner.heldout_prompts",
        "2",
        "--aligner.max_new_tokens",
        "8",
    ]
    done = lmflow(*RAFT, "--reward", "python:mine:score", *small)
    refused(done, 1, expected, "prompt:", "completion:")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "failed"
    assert expected in record["error"]
    assert (tmp_path / "out" / "samples" / "iteration-0001.jsonl").exists()
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000001"]
    (tmp_path / "mine.py").write_text(
        "def score(prompts, completions, records): return [float(len(c)) for c in completions]\n"
    )
    resumed = lmflow("run", "--resume", "--output", "out", "--json")
    assert resumed.code == 0, resumed.err


def test_output_that_holds_a_run(lmflow, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"status": "completed"}')
    refused(lmflow(*RAFT), 2, "already holds a run", "--resume", "--overwrite")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_says_how_to_resume(
    number, code, tmp_path: Path, environment, lmflow, metrics, hold
):
    data = [{"instruction": f"Say {i}", "output": f"{i} and {i + 1}"} for i in range(60)]
    (tmp_path / "d.json").write_text(json.dumps(data))
    arguments = [
        "run",
        "--tuner",
        "lora",
        "--data.path",
        "d.json",
        "--data.validation",
        "0.1",
        "--training.epochs",
        "2",
        "--training.batch_size",
        "4",
    ]
    command = [str(Path(sys.executable).with_name("lmflow")), *arguments, "--output", "cut"]
    variables = {**environment, **hold.variables}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True)
    hold.wait(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "lmflow run --resume --output cut" in err
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    taken = len(metrics(tmp_path / "cut"))
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == [f"step-{taken:06d}"]
    if number == signal.SIGINT:  # the resumed run is the uninterrupted one
        assert lmflow("run", "--resume", "--output", "cut", "--quiet").code == 0
        assert lmflow(*arguments, "--output", "whole", "--quiet").code == 0
        pick = [[m["loss"] for m in metrics(tmp_path / n) if "loss" in m] for n in ("cut", "whole")]
        assert pick[0] == pick[1]
        assert taken < len(pick[1])


def test_a_full_disk(tmp_path: Path, lmflow):
    """Writing a checkpoint fails as on a full disk; the earlier checkpoint survives and the message says so."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, errno, sys\n"
        "def fill(event, arguments):\n"
        "    if event == 'open' and 'step-000002' in str(arguments[0]) and 'optimizer' in str(arguments[0]):\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(arguments[0]))\n"
        "sys.addaudithook(fill)\n"
    )
    small = [
        "--aligner.prompts",
        "4",
        "--training.batch_size",
        "4",
        "--aligner.samples",
        "2",
        "--aligner.heldout_prompts",
        "2",
        "--aligner.max_new_tokens",
        "8",
    ]
    done = lmflow(*RAFT, *small, env={"PYTHONPATH": str(tmp_path)})
    refused(done, 1, "disk is full", "--resume")
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000001"]


def test_a_non_finite_loss(lmflow, tmp_path: Path):
    done = lmflow(
        "run",
        "--tuner",
        "lora",
        "--training.learning_rate",
        "1e30",
        "--training.max_grad_norm",
        "none",
        "--training.max_steps",
        "20",
        "--output",
        "out",
    )
    refused(done, 1, "not finite", "--training.learning_rate")


def test_no_socket_but_loopback(lmflow, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.sendto', 'socket.getaddrinfo'):\n"
        "        place = str(arguments[1] if event == 'socket.connect' else arguments[0])\n"
        "        if '127.0.0.1' not in place and '::1' not in place and 'localhost' not in place:\n"
        "            open('opened.txt', 'a').write(f'{event} {arguments}\\n')\n"
        "sys.addaudithook(watch)\n"
    )
    small = [
        "--aligner.prompts",
        "4",
        "--aligner.samples",
        "2",
        "--aligner.heldout_prompts",
        "2",
        "--aligner.iterations",
        "1",
    ]
    env = {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = lmflow(*RAFT, *small, "--trackers", "tensorboard,mlflow", "--json", env=env)
    assert done.code == 0, done.err
    assert not any("tracker" in note for note in done.record["notes"])
    assert not (tmp_path / "opened.txt").exists(), (tmp_path / "opened.txt").read_text()
