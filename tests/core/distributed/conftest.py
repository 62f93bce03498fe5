"""Two real processes for a small program."""

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import pytest

InTwo = Callable[..., Sequence["subprocess.CompletedProcess[str]"]]


def pick_free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_port() -> int:
    """See `pick_free_port`."""
    return pick_free_port()


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory, shared_environment: Any) -> InTwo:
    """Runs a program's text, with arguments, as a group of two, which start warm; how each process ended."""
    file = tmp_path_factory.mktemp("two") / "two.py"

    def run(program: str, *arguments: str) -> Sequence["subprocess.CompletedProcess[str]"]:
        file.write_text(program)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(pick_free_port())}
        group = {**meeting, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [shared_environment.command("python"), str(file), *arguments],
                env={**os.environ, **group, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        said = [process.communicate(timeout=600) for process in processes]
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *each)
            for process, each in zip(processes, said, strict=True)
        ]

    return run
