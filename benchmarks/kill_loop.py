"""Runs killed at random moments, over and over, end as the run that never was: to the last bit.

    python benchmarks/kill_loop.py --aligner raft --processes 1 --kills 20

A run of the embedded model is carried out once undisturbed. Then the same recipe is started, killed with SIGKILL at a
random moment, resumed, killed again, until it ends; and all of that anew until `--kills` were made. Each end must
have the same weights, optimizer state, samples and metrics (but those that are times). Exits 1 at a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

TIMES = ("seconds", "tokens_per_second")
"""How the names of metrics begin that say how long something took."""
SMALL = {
    "sft": "--aligner sft --tuner full --data.limit 128 --training.max_steps 40 --training.checkpoint_every 3 "
    "--training.evaluate_every 10 --training.batch_size 8",
    "raft": "--aligner raft --tuner lora --aligner.iterations 3 --aligner.prompts 16 --aligner.samples 4 "
    "--aligner.heldout_prompts 8 --training.checkpoint_every 2 --training.batch_size 4",
}


def main() -> int:
    """Make the kills and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--aligner", choices=SMALL, default="sft")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    several = ["--launch.processes", str(given.processes)] if given.processes > 1 else []
    recipe = [*SMALL[given.aligner].split(), *several]
    draw = random.Random(given.seed)
    kills = rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        started = time.monotonic()
        carry_out(recipe, whole)
        seconds = time.monotonic() - started
        expected = found_in(whole)
        while kills < given.kills:
            rounds += 1
            place = Path(folder) / f"killed-{rounds}"
            kills += killed_until_it_ends(recipe, place, seconds, draw)
            differing = differences(expected, found_in(place))
            sys.stdout.write(f"{given.aligner}, {given.processes} process(es): {kills} kills, ")
            sys.stdout.write(f"differing: {', '.join(differing)}\n" if differing else "the end is the same\n")
            sys.stdout.flush()
            if differing:
                return 1
    return 0


def command(recipe: Sequence[str], place: Path) -> list[str]:
    """What to type to start the run, or to continue it where it has begun."""
    begun = (place / "recipe.yaml").exists()
    return [
        sys.executable,
        "-m",
        "lmflow",
        "run",
        "--quiet",
        "--output",
        str(place),
        *(["--resume"] if begun else recipe),
    ]


def carry_out(recipe: Sequence[str], place: Path) -> None:
    """One run from its beginning to its end."""
    subprocess.run(command(recipe, place), env=environment(), check=True)


def killed_until_it_ends(recipe: Sequence[str], place: Path, seconds: float, draw: random.Random) -> int:
    """Start, kill and resume until the run ends by itself; returns how often it was killed."""
    kills = 0
    while True:
        process = subprocess.Popen(command(recipe, place), env=environment())
        try:
            process.wait(timeout=draw.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            for each in (process.pid, *descendants(process.pid)):  # its workers too, as when a machine fails
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()
            time.sleep(0.1)
            kills += 1
            continue
        if process.returncode:
            raise SystemExit(f"the run failed after {kills} kills")
        return kills


def descendants(process: int) -> list[int]:
    """Numbers of all processes that a process started, directly or not; Linux says."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found


def environment() -> dict[str, str]:
    """One thread, because sums in another order are other sums."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def found_in(place: Path) -> dict[str, Any]:
    """What a run left that must not depend on when it was killed."""
    found: dict[str, Any] = {}
    last = sorted((place / "checkpoints").iterdir())[-1]
    for file in sorted(
        [*last.glob("*.safetensors"), *place.glob("adapter/*.safetensors"), *place.glob("model/*.safetensors")]
    ):
        tensors = load_file(file)
        found[file.parent.name + "/" + file.name] = {name: value.numpy().tobytes() for name, value in tensors.items()}
    found["metrics.jsonl"] = [timeless(line) for line in lines_of(place / "metrics.jsonl")]
    for file in sorted((place / "samples").glob("*.jsonl")):
        found["samples/" + file.name] = file.read_text(encoding="utf-8")
    found["run.json"] = timeless(json.loads((place / "run.json").read_text(encoding="utf-8"))["metrics"])
    return found


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics but those that are times."""
    return {name: value for name, value in metrics.items() if not name.startswith(TIMES)}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]


if __name__ == "__main__":
    sys.exit(main())
