"""Starting the processes of a run on this machine, and ending together with them: `--launch.processes`.

The launcher loads no torch. Its processes are `lmflow run` again, with the resolved recipe and the variables that tell
each of the others; the one of rank 0 has the terminal, the others write to a file that is shown only if they crash.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lmflow.distributed.environment import LAUNCHER, LOOPBACK, REPORT, usual_threads
from lmflow.distributed.outcome import ExitStatus, Outcome, summarize
from lmflow.distributed.signals import handling, stopping_signals
from lmflow.distributed.worker import read_report
from lmflow.recipe.sections.launch import LaunchOptions

GRACE = 5.0
"""Seconds that the other processes have once one has failed, or a second signal came."""
PAUSE = 0.05


@dataclass
class WorkerProcess:
    """A process that was started, and how it ended."""

    rank: int
    process: subprocess.Popen[bytes]
    report: Path
    stderr: Path | None
    """What it wrote to standard error, where that is not the terminal."""
    killed: bool = False
    ended_at: float | None = None

    def is_running(self) -> bool:
        """Whether it is; notes the time when it no longer is."""
        if self.process.poll() is not None and self.ended_at is None:
            self.ended_at = time.monotonic()
        return self.ended_at is None

    def tell(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.is_running():
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it and what it started, which is its own process group, at once."""
        if self.is_running():
            self.killed = True
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()

    def ended(self) -> ExitStatus:
        """How it ended."""
        lines = self.stderr.read_text(errors="replace").splitlines() if self.stderr else []
        code, report = self.process.returncode, read_report(self.report)
        return ExitStatus(self.rank, self.process.pid, code, self.ended_at or 0.0, self.killed, report, lines)


@dataclass
class Stop:
    """Signals that asked the launcher to stop, and how many of them the processes were told."""

    asked: list[int] = field(default_factory=list)
    told: int = 0


def launch(
    options: LaunchOptions,
    recipe: str,
    output: Path,
    arguments: Sequence[str],
    *,
    show_all: bool = False,
    show_result: bool = True,
) -> Outcome:
    """Carry out `recipe` (YAML) in several processes on this machine; returns how they ended, once all have.

    `arguments` go on with `lmflow run RECIPE --output OUTPUT`. With `show_all` every process writes to the terminal;
    without `show_result` none writes to standard output.
    """
    with tempfile.TemporaryDirectory(prefix="lmflow-launch-") as folder, handle_signals() as stop:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe, encoding="utf-8")
        # -P: as the command itself, and unlike -m alone, it imports nothing that happens to lie in this directory.
        command = [sys.executable, "-P", "-m", "lmflow", "run", str(file), "--output", str(output), *arguments]
        workers: list[WorkerProcess] = []
        try:
            for local_rank in range(options.processes):
                environment = worker_environment(options, local_rank, Path(folder), os.environ)
                workers.append(start(command, environment, Path(folder), show=show_all, show_result=show_result))
            ended = supervise(workers, stop, options.grace)
        finally:
            for worker in workers:
                worker.kill()
        return summarize(ended, options.total, output, stop.asked[0] if stop.asked else None)


def start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, *, show: bool, show_result: bool = True
) -> WorkerProcess:
    """Start one process. It is a session of its own: a Ctrl-C reaches it through the launcher alone, and so once."""
    rank = int(environment["RANK"])
    seen = show or rank == 0
    stderr = None if seen else folder / f"process-{rank}.txt"
    with open(stderr or os.devnull, "wb") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 and show_result else subprocess.DEVNULL if seen else file,
            stderr=None if seen else file,
            start_new_session=True,
        )
    return WorkerProcess(rank, process, Path(environment[REPORT]), stderr)


def worker_environment(
    options: LaunchOptions, local_rank: int, folder: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    """The variables of one process: what torch and accelerate read, and how many threads it computes with."""
    host, _, port = (options.address or "").rpartition(":")
    rank = options.host_rank * options.processes + local_rank
    made = dict(environment)
    made.setdefault("OMP_NUM_THREADS", str(usual_threads(options.processes)))
    made.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost process the launcher tells, once
    return made | {
        "RANK": str(rank),
        "WORLD_SIZE": str(options.total),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(options.processes),
        "MASTER_ADDR": host or LOOPBACK,
        "MASTER_PORT": port or _free_port(folder),
        REPORT: str(folder / f"process-{rank}.json"),
        LAUNCHER: str(os.getpid()),
    }


def _free_port(folder: Path) -> str:
    """A port nobody listens on, the same for all processes."""
    kept = folder / "port"
    if not kept.exists():
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            kept.write_text(str(probe.getsockname()[1]))
    return kept.read_text()


@contextmanager
def handle_signals() -> Iterator[Stop]:
    """Within the context signals that end a process are kept for the processes it started."""
    stop = Stop()

    def ask(number: int, _: FrameType | None) -> None:
        stop.asked.append(number)

    with handling(ask, *stopping_signals()):
        yield stop


def supervise(workers: Sequence[WorkerProcess], stop: Stop, grace: float = math.inf) -> list[ExitStatus]:
    """Wait for all processes, pass signals on to them, and end those that outlive one that failed.

    From the first signal they have `grace` seconds to stop at a safe place, from a second one GRACE.
    """
    deadline = math.inf
    while running := [worker for worker in workers if worker.is_running()]:
        for number in stop.asked[stop.told :]:
            stop.told += 1
            deadline = min(deadline, time.monotonic() + (grace if stop.told == 1 else GRACE))
            for worker in running:
                worker.tell(signal.SIGTERM if number == signal.SIGHUP else number)
                worker.tell(signal.SIGCONT)  # one that was stopped hears of nothing, and the others wait for it
        if any(has_failed(worker) for worker in workers):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for worker in running:
                worker.kill()
        time.sleep(PAUSE)
    return [worker.ended() for worker in workers]


def has_failed(worker: WorkerProcess) -> bool:
    """Whether it ended otherwise than by finishing its work, or by stopping when it was asked to."""
    if worker.is_running() or worker.process.returncode == 0:
        return False
    report = read_report(worker.report)
    return report is None or report.kind != "interrupted"
