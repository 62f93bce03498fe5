"""What `lmflow` takes to start beside `import typer, pydantic`: processor seconds, as a ratio, in fresh processes.

Usage: python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Bytecode is kept, as it is where lmflow is installed: without it every start compiles every module anew."""
LMFLOW = str(Path(sys.executable).with_name("lmflow"))
BASE = (sys.executable, "-c", "import typer, pydantic; from pydantic import BaseModel")
COMMANDS = ("--version", "--help", "plugins", "run --help", "run --tuner lora --aligner raft --help", "recipe show")


def processor_seconds(*command: str) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all of them in turn, several times, and print the least of each as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    commands = {"`import typer, pydantic`": BASE}
    commands |= {f"`lmflow {words}`": (LMFLOW, *words.split()) for words in COMMANDS}
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, command in commands.items():
            best[name] = min(best[name], processor_seconds(*command))
    base, *_ = best.values()
    print("| | seconds | ratio |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.3f} | {seconds / base:.2f} |")
    versions = ", ".join(f"{name} {version(name)}" for name in ("typer", "pydantic", "pluggy"))
    print(f"\nPython {platform.python_version()}, {versions}.")


if __name__ == "__main__":
    main()
