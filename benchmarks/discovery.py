"""What it costs to discover 200 installed plugins beside 1: processor seconds of `lmflow plugins`, in fresh processes.

Usage: python benchmarks/discovery.py [--plugins 200] [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

MODULE = '''"""A plugin of usual size: a tuner with options, and a listener."""
from typing import Literal

from pydantic import Field

from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

LMFLOW_INTERFACE = 2


class Tuner{number}(Tuner):
    """Train some of the parameters."""

    name = "tuner-{number}"
    rank: int = Field(8, gt=0, description="Rank of each update.")
    alpha: float = Field(16.0, gt=0, description="Scale of the update.")
    kind: Literal["a", "b"] = Field("a", description="Which kind.")
    targets: list[str] = Field(default_factory=list, description="Which layers.")

    def prepare(self, model):
        return model


@hookimpl
def lmflow_tuners():
    return [Tuner{number}]


@hookimpl
def lmflow_step_finished(step):
    pass
'''


def install(folder: Path, count: int) -> None:
    """Write `count` distributions with metadata and one module each."""
    for number in range(count):
        (folder / f"plugin_{number}.py").write_text(MODULE.replace("{number}", str(number)))
        info = folder / f"plugin_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lmflow]\nmain = plugin_{number}\n")


def processor_seconds(folder: Path) -> float:
    """User and system time of one `lmflow plugins` with what `folder` holds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lmflow", "plugins"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(folder)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure alternately, and print the least of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plugins", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
        counts = {1: Path(one), arguments.plugins: Path(many)}
        for count, folder in counts.items():
            install(folder, count)
            processor_seconds(folder)  # writes the bytecode, as an installer would
        best = dict.fromkeys(counts, float("inf"))
        for _ in range(arguments.rounds):
            for count, folder in counts.items():
                best[count] = min(best[count], processor_seconds(folder))
    print(f"Python {platform.python_version()}, pluggy {version('pluggy')}, pydantic {version('pydantic')}")
    for count, seconds in best.items():
        print(f"{count:>5} more plugins: {seconds:.3f} s")
    print(f"difference: {best[arguments.plugins] - best[1]:.3f} s")


if __name__ == "__main__":
    main()
