"""What is said of a run's end, from how each of its processes ended."""

import json
from pathlib import Path

import pytest

from lmflow.distributed.outcome import ExitStatus, Outcome, summarize
from lmflow.distributed.worker import Report
from lmflow.run.directory import RunDirectory

PID = 4711


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's directory as process PID left it, without having written how it ended."""
    directory = RunDirectory(tmp_path / "run")
    directory.write_record({"status": "running", "error": None, "metrics": {}})
    for step in (20, 40):
        (directory.checkpoints / f"step-{step:06d}").mkdir()
    directory.close()
    (tmp_path / "run" / ".lock").write_text(str(PID))
    return tmp_path / "run"


def record(run: Path) -> tuple[str, str | None]:
    found = json.loads((run / "run.json").read_text())
    return found["status"], found["error"]


def failed(rank: int, text: str, at: float = 1.0, code: int = 1) -> ExitStatus:
    return ExitStatus(rank, PID, code, at, report=Report("error", code, [f"error: {text}"]))


def lost(rank: int, at: float = 1.5) -> ExitStatus:
    return ExitStatus(
        rank, PID, 1, at, report=Report("lost", 1, ["error: another process of the run has ended (gloo)"])
    )


def stopped(rank: int, number: int = 2) -> ExitStatus:
    words = "Stopped; what was finished is in run. Continue with: lmflow run --resume --output run"
    return ExitStatus(rank, PID, 128 + number, 1.0, report=Report("interrupted", 128 + number, [words]))


def done(rank: int) -> ExitStatus:
    return ExitStatus(rank, PID, 0, 1.0)


def test_all_is_well(run: Path):
    assert summarize([done(0), done(1)], 2, run, None) == Outcome(0)


def test_a_killed_process_is_named_with_the_checkpoint_to_go_on_from(run: Path):
    outcome = summarize([lost(0), ExitStatus(1, 1, -9, 1.0)], 2, run, None)
    assert outcome.code == 1
    assert [line.replace(str(run), "RUN") for line in outcome.lines] == [
        "error: process 1 of 2 was killed by signal 9 (SIGKILL); the system does that to the largest process where "
        "memory runs out",
        "error: all processes are stopped. The last checkpoint is that of step 40. Continue with: lmflow run --resume "
        "--output RUN",
    ]
    status, error = record(run)
    assert status == "failed"
    assert error is not None
    assert error.startswith("process 1 of 2 was killed by signal 9")
    assert "killed by signal 9" in (run / "report.html").read_text()


def test_the_main_process_killed_too(run: Path):
    outcome = summarize([ExitStatus(0, PID, -11, 1.0), ExitStatus(1, 1, -9, 6.0, killed=True)], 2, run, None)
    assert outcome.lines[0] == "error: process 0 of 2 was killed by signal 11 (SIGSEGV)"
    assert record(run)[0] == "failed"


def test_a_crash_without_words_shows_what_the_process_wrote_last(run: Path):
    crash = ExitStatus(1, 1, 3, 1.0, stderr=[f"line {i}" for i in range(9)])
    outcome = summarize([lost(0), crash], 2, run, None)
    assert outcome.lines[0] == "error: process 1 of 2 ended with exit code 3, without a word of why"
    assert list(outcome.lines[1:6]) == [f"  line {i}" for i in range(4, 9)]


def test_what_all_say_is_said_once(run: Path):
    outcome = summarize([failed(0, "bad record", code=2), failed(1, "bad record", code=2)], 2, run, None)
    assert outcome == Outcome(2, ["error: bad record"])
    assert record(run)[0] == "running"  # the main process has written how it ended; here is none


def test_what_the_main_process_alone_says_is_said_as_it_is(run: Path):
    elsewhere = ExitStatus(1, 1, 1, 1.2, report=Report("elsewhere", 1, ["error: another process of the run failed"]))
    assert summarize([failed(0, "in use"), elsewhere], 2, run, None) == Outcome(1, ["error: in use"])


def test_what_another_process_alone_says_comes_with_its_number(run: Path):
    outcome = summarize([lost(0), failed(1, "not enough memory")], 2, run, None)
    assert outcome.lines[0] == "error: process 1 of 2: not enough memory"
    assert "step 40" in outcome.lines[1]
    assert record(run) == ("failed", "process 1 of 2: not enough memory")


def test_the_first_of_two_failures_counts(run: Path):
    outcome = summarize([failed(0, "late", at=3.0), failed(1, "early", at=2.0)], 2, run, None)
    assert outcome.lines[0] == "error: process 1 of 2: early"


def test_a_process_of_another_host_is_gone(run: Path):
    outcome = summarize([lost(0)], 2, run, None)
    assert outcome.lines[0].startswith("error: process 0 of 2 has lost the others: another process of the run")


def test_stopped_by_the_user(run: Path):
    outcome = summarize([stopped(0), stopped(1)], 2, run, 2)
    assert outcome == Outcome(130, stopped(0).report.lines)  # type: ignore[union-attr]


def test_one_process_was_asked_to_stop_and_told_the_others(run: Path):
    assert summarize([stopped(0, 15), stopped(1, 15)], 2, run, None).code == 143


def test_stopped_before_the_run_began(tmp_path: Path):
    ended = [ExitStatus(0, PID, -2, 1.0), ExitStatus(1, 1, 130, 1.0)]
    assert summarize(ended, 2, tmp_path / "none", 2) == Outcome(130, ["Stopped before the run began."])


def test_stopped_at_once_the_record_is_completed(run: Path):
    outcome = summarize([ExitStatus(0, PID, -15, 1.0), ExitStatus(1, 1, -9, 6.0, killed=True)], 2, run, 15)
    assert outcome.code == 143
    assert "The last checkpoint is that of step 40" in outcome.lines[0]
    assert record(run) == ("interrupted", None)


def test_a_failure_while_stopping_is_a_failure(run: Path):
    assert summarize([failed(0, "the disk is full"), stopped(1)], 2, run, 2) == Outcome(1, ["error: the disk is full"])


def test_the_record_of_another_run_is_left_alone(run: Path):
    (run / ".lock").write_text("12")
    summarize([lost(0), ExitStatus(1, 1, -9, 1.0)], 2, run, None)
    assert record(run) == ("running", None)
