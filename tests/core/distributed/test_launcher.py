"""Starting processes and ending together with them; the processes here are a few lines of Python, not runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lmflow.distributed import launcher
from lmflow.distributed.environment import LAUNCHER, REPORT
from lmflow.distributed.launcher import Stop, WorkerProcess, start, supervise, worker_environment
from lmflow.distributed.outcome import ExitStatus
from lmflow.distributed.signals import STOPPING
from lmflow.recipe.sections.launch import LaunchOptions

SLEEP = "import time; time.sleep(1200)"
READY = "import pathlib, os; pathlib.Path(os.environ['RANK']).touch()\n"

Go = Callable[..., Sequence[WorkerProcess]]


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.5)


@pytest.fixture
def _long_grace(_short_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is to end by itself, on the busiest machine too."""
    monkeypatch.setattr(launcher, "GRACE", 600.0)


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """Starts a process for each of some programs; none survives the test."""
    monkeypatch.chdir(tmp_path)
    started: list[WorkerProcess] = []

    def start_all(*programs: str) -> Sequence[WorkerProcess]:
        options = LaunchOptions(processes=len(programs))
        for rank, program in enumerate(programs):
            environment = worker_environment(options, rank, tmp_path, os.environ)
            started.append(start([sys.executable, "-c", READY + program], environment, tmp_path, show=False))
        deadline = time.monotonic() + 300
        while not all((tmp_path / str(rank)).exists() for rank in range(len(programs))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return started

    yield start_all
    for each in started:
        each.kill()
        each.process.wait()


def codes(ended: Sequence[ExitStatus]) -> list[int]:
    return [each.code for each in ended]


def test_all_end_by_themselves(go: Go):
    assert codes(supervise(go("pass", "import time; time.sleep(0.3)"), Stop())) == [0, 0]


def test_the_others_end_with_one_that_was_killed(go: Go):
    workers = go(SLEEP, SLEEP)
    workers[1].process.send_signal(signal.SIGKILL)
    ended = supervise(workers, Stop())
    assert codes(ended) == [-9, -9]
    assert [each.killed for each in ended] == [True, False]


@pytest.mark.usefixtures("_long_grace")
def test_the_others_may_write_before_they_end(go: Go):
    ended = supervise(go("import time; time.sleep(0.2); raise SystemExit(4)", "raise SystemExit(3)"), Stop())
    assert codes(ended) == [4, 3]
    assert not any(each.killed for each in ended)


def test_what_a_silent_process_wrote_is_kept(go: Go):
    ended = supervise(go("pass", "import sys; print('out'); sys.exit('what went wrong')"), Stop())
    assert list(ended[1].stderr) == ["out", "what went wrong"]
    assert not ended[0].stderr  # the main process has the terminal


LISTENS = (
    "import signal, time, os\n"
    "heard = []\n"
    "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
    "pathlib.Path('listens' + os.environ['RANK']).touch()\n"
    "while not heard: time.sleep(0.01)\n"
    "time.sleep(0.2)\n"
    "raise SystemExit(len(heard))\n"
)


@pytest.mark.usefixtures("_long_grace")
def test_a_signal_reaches_each_process_once(go: Go, tmp_path: Path):
    workers, stop = go(LISTENS, LISTENS), Stop()
    while len(list(tmp_path.glob("listens*"))) < 2:
        time.sleep(0.01)
    stop.asked.append(signal.SIGINT)
    assert codes(supervise(workers, stop)) == [1, 1]


def test_a_second_signal_ends_those_that_do_not_listen(go: Go):
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('deaf', 'w')\ntime.sleep(1200)"
    workers, stop = go(deaf), Stop()
    while not Path("deaf").exists():
        time.sleep(0.01)
    stop.asked += [signal.SIGTERM, signal.SIGTERM]
    [ended] = supervise(workers, stop)
    assert (ended.code, ended.killed) == (-9, True)


def test_a_process_that_was_stopped_hears_of_the_signal(go: Go, tmp_path: Path):
    """The others wait for it at their next safe place; nothing but the launcher could wake it."""
    workers, stop = go(LISTENS, LISTENS), Stop()
    while len(list(tmp_path.glob("listens*"))) < 2:
        time.sleep(0.01)
    workers[1].process.send_signal(signal.SIGSTOP)
    stop.asked.append(signal.SIGINT)
    assert codes(supervise(workers, stop, grace=600)) == [1, 1]


def test_one_signal_is_enough_for_those_that_do_not_listen(go: Go):
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('deaf', 'w')\ntime.sleep(1200)"
    workers, stop = go(deaf), Stop()
    while not Path("deaf").exists():
        time.sleep(0.01)
    stop.asked.append(signal.SIGTERM)
    [ended] = supervise(workers, stop, grace=0.5)
    assert (ended.code, ended.killed) == (-9, True)


def test_what_a_process_started_ends_with_it(go: Go, tmp_path: Path):
    grandchild = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])\n"
        "pathlib.Path('child').write_text(str(child.pid))\n"
        "time.sleep(1200)"
    )
    workers = go(grandchild)
    file = tmp_path / "child"
    while not (file.exists() and file.read_text()):
        time.sleep(0.01)
    workers[0].kill()
    workers[0].process.wait()
    deadline = time.monotonic() + 300
    while Path(f"/proc/{file.read_text()}/cmdline").exists():
        if Path(f"/proc/{file.read_text()}/stat").read_text().split()[2] == "Z":
            break  # dead, and waits for somebody to ask
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_variables_of_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmflow.distributed.environment.available_cores", lambda: 8)
    options = LaunchOptions(processes=4, hosts=2, host_rank=1, address="node0:29500")
    made = worker_environment(options, 2, tmp_path, {"HOME": "/home/me"})
    assert made == {
        "HOME": "/home/me",
        "OMP_NUM_THREADS": "2",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "RANK": "6",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "29500",
        REPORT: str(tmp_path / "process-6.json"),
        LAUNCHER: str(os.getpid()),
    }
    assert worker_environment(options, 2, tmp_path, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"


def test_processes_of_one_machine_meet_at_one_free_port(tmp_path: Path):
    options = LaunchOptions(processes=2)
    ports = {worker_environment(options, rank, tmp_path, {})["MASTER_PORT"] for rank in (0, 1)}
    assert len(ports) == 1
    assert worker_environment(options, 0, tmp_path, {})["MASTER_ADDR"] == "127.0.0.1"


def test_signals_are_the_launchers_only_while_it_waits():
    before = {number: signal.getsignal(number) for number in STOPPING}
    with launcher.handle_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked == [signal.SIGTERM, signal.SIGINT]
    assert {number: signal.getsignal(number) for number in STOPPING} == before


def test_the_launcher_needs_no_torch():
    program = "import sys, lmflow.distributed.launcher, lmflow.run.run, lmflow.cli.run; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_process_stops_when_its_launcher_is_gone():
    """Its parent is not the launcher that its variables name: it is as if that had ended."""
    program = "from lmflow.distributed.worker import follow_launcher; follow_launcher(); " + SLEEP
    environment = {**os.environ, LAUNCHER: "1" if os.getpid() != 1 else "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=300, check=False)
    assert done.returncode == -signal.SIGTERM


def test_a_process_without_a_launcher_follows_none(monkeypatch: pytest.MonkeyPatch):
    from lmflow.distributed.worker import follow_launcher

    monkeypatch.delenv(LAUNCHER, raising=False)
    count = threading.active_count()
    follow_launcher()
    assert threading.active_count() == count
