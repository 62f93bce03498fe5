"""A process that `lmflow run` started: how it tells its launcher how it ended, and ends itself without one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lmflow.distributed.environment import LAUNCHER, report_file, this_worker
from lmflow.distributed.processes import has_joined, is_reported_by_rank0
from lmflow.errors import FailedElsewhere, Interrupted, LostContact, RecipeError

Kind = Literal["error", "interrupted", "lost", "elsewhere"]
"""Why a process ended: by a failure of its own, because it was asked to, because another no longer answers, or because
another said that it failed."""

SECONDS_ALONE = 30.0
"""How long a process may take to stop at a safe place once its launcher is gone."""
LOST = ("gloo", "NCCL", "onnection closed", "onnection reset", "TCPStore", "Broken pipe", "heartbeat")
"""What the errors of exchanges between processes speak of."""


@dataclass(frozen=True)
class Report:
    """What a process says of its end."""

    kind: Kind
    code: int
    lines: Sequence[str]


def report_end(error: BaseException, code: int, lines: Sequence[str]) -> Sequence[str]:
    """Tell the launcher how this process ends; the lines that are left for it to print.

    Where `lmflow run` started it, the launcher prints. Of those that torchrun or SLURM started, rank 0 prints
    what all have in common; another prints, with its number, what rank 0 cannot know.
    """
    file = report_file()
    if file is not None:
        said = json.dumps(asdict(Report(kind_of(error), code, list(lines))))
        partial = file.with_suffix(".partial")
        try:
            partial.write_text(said, encoding="utf-8")
            os.replace(partial, file)
        except OSError:  # the disk is full, or the launcher has gone
            return lines
        return []
    try:
        worker = this_worker()
    except RecipeError:
        return lines
    told = kind_of(error) == "error" and is_reported_by_rank0("\n".join(lines))
    if worker is None or worker.is_rank0:
        return lines
    if told or kind_of(error) != "error" or isinstance(error, RecipeError):
        return []
    return [f"process {worker.rank} of {worker.size}: {line}" for line in lines]


@dataclass
class Ending:
    """The exit handler that is to run last; it ends a process that met others before Python takes its modules apart.

    torch's threads for exchanges outlive the group once there was a DistributedDataParallel, which keeps it for ever
    (torch 2.15). One that lets go of a Python object while the interpreter goes down aborts the process: "terminate
    called without an active exception".
    """

    code: int | None = None
    """The exit code, once it is known."""

    def __call__(self) -> None:
        """End the process, if it met others and its exit code is known."""
        if self.code is None or not has_joined():
            return
        logging.shutdown()  # an exit handler too, and an older one
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # it is closed, or its reader has gone
                stream.flush()
        os._exit(self.code)


def read_report(file: Path) -> Report | None:
    """What a process said of its end; None if it said nothing."""
    try:
        return Report(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def kind_of(error: BaseException) -> Kind:
    """Which kind of end an error is."""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    if isinstance(error, FailedElsewhere):
        return "elsewhere"
    return "lost" if isinstance(error, LostContact) or is_lost_contact(error) else "error"


def is_lost_contact(error: BaseException) -> bool:
    """Whether an error says that another process has gone, or does not answer."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError) or not torch.distributed.is_initialized():
        return False
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in LOST)


def follow_launcher() -> None:
    """Stop, as if asked by a signal, once the process that started this one is gone: nobody else would."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        if file := report_file():
            shutil.rmtree(file.parent, ignore_errors=True)  # then this process prints its last words itself
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_ALONE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()
