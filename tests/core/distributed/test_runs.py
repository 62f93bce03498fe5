"""`lmflow run --launch.processes 2` by the real command: equal to one process, stopped, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("launching"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc"),
]

STEPS = 20
PATIENCE = 600
"""Seconds after which something has hung; on a busy machine a run alone may take minutes."""
BIN = Path(sys.executable).parent
Begin = Callable[..., "subprocess.Popen[str]"]
Hold = Any
TWO = ("--launch.processes", "2")


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    started = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in started}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Sequence[str]:
    """A training that takes a few seconds; what is to be interrupted is held where it is (see the fixture `hold`)."""
    data = tmp_path_factory.mktemp("data") / "data.json"
    data.write_text(json.dumps([{"instruction": f"Say {i}", "output": f"{i} and {i + 1}"} for i in range(120)]))
    options = {
        "model.path": model_directory,
        "data.path": data,
        "training.device": "cpu",
        "training.batch_size": 7,
        "training.max_steps": STEPS,
        "training.checkpoint_every": 5,
        "aligner.heldout_prompts": 3,
        "aligner.max_new_tokens": 6,
    }
    return ["run", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def begin(environment: Mapping[str, str], without_deepspeed: str) -> Begin:
    """Starts the command as it is installed, or another program."""

    def start(
        *words: str, program: Sequence[str] = (str(BIN / "lmflow"),), held: Hold | None = None
    ) -> subprocess.Popen[str]:
        places = [without_deepspeed, *([str(held.place)] if held else [])]
        variables = {**environment, "PYTHONPATH": os.pathsep.join(places)}
        return subprocess.Popen(
            [*program, *words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.fixture(scope="module")
def begin_warm(begin: Begin, shared_environment: Any) -> Begin:
    """Starts it where nobody interrupts it, and so without importing the libraries anew in each process."""
    return partial(begin, program=[str(shared_environment.command("lmflow"))])


@pytest.fixture(scope="module")
def whole(begin_warm: Begin, arguments: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, left alone."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    process = begin_warm(*arguments, "--quiet", "--output", str(directory))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return directory


def lines(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def workers_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found[int(next(each for each in variables if each.startswith("RANK=")).removeprefix("RANK="))] = int(child)
    return found


def assert_gone(pids: Sequence[int], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        assert time.monotonic() < deadline, "a process outlived the command"
        time.sleep(0.05)


def assert_equal_losses(run: Path, whole: Path) -> None:
    taken, expected = lines(run), lines(whole)
    assert [line["step"] for line in taken] == [line["step"] for line in expected]
    assert [line["loss"] for line in taken] == pytest.approx([line["loss"] for line in expected], abs=1e-5)
    assert [line["tokens"] for line in taken] == [line["tokens"] for line in expected]


def resume(begin_warm: Begin, run: Path, *more: str) -> None:
    process = begin_warm("run", "--resume", "--output", str(run), "--quiet", *more)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert record(run)["status"] == "completed"


def test_two_processes_compute_what_one_does(begin: Begin, arguments: Sequence[str], whole: Path, tmp_path: Path):
    process = begin(*arguments, *TWO, "--json", "--output", str(tmp_path / "run"))
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    printed = json.loads(out)  # one object, from one process
    assert (printed["status"], printed["processes"]) == ("completed", 2)
    assert_equal_losses(tmp_path / "run", whole)
    for name in ("eval_loss_before", "eval_loss_after", "generic_loss_after"):
        assert printed["metrics"][name] == pytest.approx(record(whole)["metrics"][name], abs=1e-5)
    assert (tmp_path / "run" / "comparison.jsonl").read_text() == (whole / "comparison.jsonl").read_text()
    assert {each.name for each in (tmp_path / "run").iterdir()} == {each.name for each in whole.iterdir()}


def test_split_weights_compute_what_whole_ones_do(
    begin_warm: Begin, arguments: Sequence[str], whole: Path, tmp_path: Path
):
    """The whole life of a run: measured and asked before and after, saved, and the result loaded by one process."""
    run = tmp_path / "run"
    process = begin_warm(*arguments, *TWO, "--launch.strategy", "fsdp", "--json", "--output", str(run))
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    printed = json.loads(out)
    assert printed["processes"] == 2
    assert_equal_losses(run, whole)
    for name in ("eval_loss_before", "eval_loss_after", "generic_loss_after"):
        assert printed["metrics"][name] == pytest.approx(record(whole)["metrics"][name], abs=1e-5)
    assert (run / "comparison.jsonl").read_text() == (whole / "comparison.jsonl").read_text()
    both = [load_file(each / "model" / "model.safetensors") for each in (run, whole)]
    assert both[0].keys() == both[1].keys()
    for name, value in both[0].items():
        torch.testing.assert_close(value, both[1][name], atol=1e-4, rtol=0)


def test_a_killed_process_ends_the_run_with_one_message(
    begin: Begin, begin_warm: Begin, arguments: Sequence[str], whole: Path, hold: Hold, tmp_path: Path
):
    run = tmp_path / "run"
    process = begin(*arguments, *TWO, "--quiet", "--output", str(run), held=hold)
    hold.wait(process)
    workers = workers_of(process)
    os.kill(workers[1], signal.SIGKILL)
    hold.let_go()
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert len(err.splitlines()) == 2, err
    assert "process 1 of 2 was killed by signal 9 (SIGKILL)" in err
    assert f"Continue with: lmflow run --resume --output {run}" in err
    kept = max(int(each.name.removeprefix("step-")) for each in (run / "checkpoints").glob("step-*"))
    assert f"The last checkpoint is that of step {kept}." in err
    assert record(run)["status"] == "failed"
    assert "killed by signal 9" in record(run)["error"]
    assert_gone(list(workers.values()))
    resume(begin_warm, run, "--launch.processes", "1")
    assert_equal_losses(run, whole)


@pytest.mark.parametrize(
    ("number", "who", "code"), [(signal.SIGINT, "launcher", 130), (signal.SIGTERM, "process 1", 143)]
)
def test_a_signal_stops_all_at_one_step(
    number: int,
    who: str,
    code: int,
    begin: Begin,
    begin_warm: Begin,
    arguments: Sequence[str],
    whole: Path,
    hold: Hold,
    tmp_path: Path,
):
    run = tmp_path / "run"
    process = begin(*arguments, *TWO, "--quiet", "--output", str(run), held=hold)
    hold.wait(process)
    workers = workers_of(process)
    os.kill(process.pid if who == "launcher" else workers[1], number)
    if who != "launcher":  # which passes the signal on: it lets them go
        hold.let_go()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert err == f"Stopped; what was finished is in {run}. Continue with: lmflow run --resume --output {run}\n"
    assert record(run)["status"] == "interrupted"
    taken = len(lines(run))
    assert taken < STEPS
    assert (run / "checkpoints" / f"step-{taken:06d}").is_dir()  # both stopped here, so nothing is lost
    assert_gone(list(workers.values()))
    resume(begin_warm, run)
    assert record(run)["processes"] == 2
    assert_equal_losses(run, whole)


def test_without_its_launcher_a_run_stops_and_keeps_its_work(
    begin: Begin, arguments: Sequence[str], hold: Hold, tmp_path: Path
):
    run = tmp_path / "run"
    process = begin(*arguments, *TWO, "--quiet", "--output", str(run), held=hold)
    hold.wait(process)
    workers = workers_of(process)
    process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert err.startswith(f"Stopped; what was finished is in {run}.")
    assert_gone(list(workers.values()))
    assert record(run)["status"] == "interrupted"
    assert (run / "checkpoints" / f"step-{len(lines(run)):06d}").is_dir()


def test_a_run_of_one_process_goes_on_in_two(
    begin: Begin, begin_warm: Begin, arguments: Sequence[str], whole: Path, hold: Hold, tmp_path: Path
):
    run = tmp_path / "run"
    process = begin(*arguments, "--quiet", "--output", str(run), held=hold)
    hold.wait(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE) == 130
    resume(begin_warm, run, *TWO)
    assert_equal_losses(run, whole)


def test_torchrun_starts_the_processes(begin: Begin, arguments: Sequence[str], whole: Path, tmp_path: Path):
    torchrun = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    process = begin(
        *arguments, "--json", "--output", str(tmp_path / "run"), program=[*torchrun, "localhost:0", "-m", "lmflow"]
    )
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["processes"] == 2
    assert_equal_losses(tmp_path / "run", whole)


def test_an_error_that_all_processes_find_is_told_once(begin_warm: Begin, tmp_path: Path):
    (tmp_path / "bad.json").write_text('[{"instruction": "a", "output": "b"}, {"instruction": 3, "output": "b"}]')
    process = begin_warm(
        "run", "--data.path", str(tmp_path / "bad.json"), *TWO, "--quiet", "--output", str(tmp_path / "run")
    )
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.count("record 2: instruction: expected text") == 1
    assert "Traceback" not in err
    assert record(tmp_path / "run")["status"] == "failed"


def test_a_directory_in_use_is_refused_and_left_as_it_is(begin_warm: Begin, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"status": "completed"}')
    process = begin_warm("run", *TWO, "--quiet", "--output", str(run))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert (
        err
        == f"error: {run} already holds a run (completed); continue it with --resume, or replace it with --overwrite.\n"
    )
    assert record(run) == {"status": "completed"}
