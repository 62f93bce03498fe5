"""Whole runs through the installed command, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
def installed_lmflow(tmp_path: Path, environment: Mapping[str, str]) -> Callable[..., Outcome]:
    """Run `lmflow ARGUMENTS` in a temporary directory."""

    def call(*arguments: str) -> Outcome:
        return carry_out([str(Path(sys.executable).with_name("lmflow")), *arguments], tmp_path, environment)

    return call


@pytest.fixture
def lmflow(tmp_path: Path, environment: Mapping[str, str], shared_environment: Any) -> Callable[..., Outcome]:
    """The same in a few seconds less: libraries are not imported anew, and DeepSpeed is not installed."""

    def call(*arguments: str, env: Mapping[str, str] = {}) -> Outcome:
        return carry_out([str(shared_environment.command("lmflow")), *arguments], tmp_path, {**environment, **env})

    return call


def carry_out(command: Sequence[str], place: Path, environment: Mapping[str, str]) -> Outcome:
    """What a command prints and returns."""
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,  # only what has hung takes as long, on the busiest machine
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    def read(directory: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]

    return read
