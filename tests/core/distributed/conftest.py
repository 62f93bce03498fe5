"""Two real processes for a small program."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

InTwo = Callable[..., Sequence["subprocess.CompletedProcess[str]"]]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def in_two_processes(tmp_path: Path, free_port: int) -> InTwo:
    """Runs a program's text, with arguments, as a group of two; how each process ended."""

    def run(program: str, *arguments: str) -> Sequence["subprocess.CompletedProcess[str]"]:
        file = tmp_path / "two.py"
        file.write_text(program)
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, str(file), *arguments],
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
