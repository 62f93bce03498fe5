"""Whole runs through the installed command, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Outcome:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        """The JSON object a command with --json prints, and nothing else."""
        parsed: dict[str, Any] = json.loads(self.out)
        return parsed


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "NO_COLOR": "1"}


@pytest.fixture
def lmflow(tmp_path: Path, environment: Mapping[str, str]) -> Callable[..., Outcome]:
    """Run `lmflow ARGUMENTS` in a temporary directory."""

    def call(*arguments: str, timeout: float = 300, env: Mapping[str, str] = {}) -> Outcome:
        command = [str(Path(sys.executable).with_name("lmflow")), *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    def read(directory: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    return read
