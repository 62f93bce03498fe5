"""What the groups of faults.py share: commands, how they end, and what is wrong with that."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kill_loop import descendants, differences, environment, found_in

SECONDS = 600
"""After which a command counts as hanging."""
OPTIONS = (
    "run --model demo --data demo --aligner sft --tuner full --data.limit 64 --training.max_steps 80 "
    "--training.checkpoint_every 20 --training.batch_size 4 --aligner.heldout_prompts 2 --aligner.max_new_tokens 4"
)
SMALL = OPTIONS.split()
"""A run of a few seconds."""


@dataclass(frozen=True)
class Fault:
    """A fault that was made, and what of its consequences is wrong."""

    name: str
    wrong: Sequence[str]


Group = Callable[["Place"], Iterator[Fault]]
"""Makes the faults of a group in a place, and says of each what came of it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None where it hung."""
    out: str
    err: str

    def wrong(self, *codes: int) -> Iterator[str]:
        """What is wrong where it should have ended with one of these codes."""
        if self.code is None:
            yield f"it hung for {SECONDS} s"
        elif self.code not in codes:
            yield f"exit code {self.code} ({self.err.strip()[-200:]})"
        if "Traceback" in self.err or "not one of the errors" in self.err:
            yield f"no message but {self.err.strip()[-200:]}"


@dataclass
class Place:
    """A folder to make faults in."""

    folder: Path
    seed: int
    kills: int
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def start(self, *words: str | Path, before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        """Begin `lmflow WORDS` here; `before` is what it is started with, such as nohup."""
        command = [*before, sys.executable, "-P", "-m", "lmflow", *map(str, words)]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**environment(), "PYTHONPATH": str(self.folder), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lmflow(self, *words: str | Path, before: Sequence[str] = (), **variables: str) -> Ended:
        """Carry out `lmflow WORDS` here."""
        return end(self.start(*words, before=before, **variables))

    def expected(self, name: str = "whole") -> dict[str, object]:
        """What the small run leaves that nobody disturbs, carried out once."""
        place = self.folder / name
        if not place.exists():
            done = self.lmflow(*SMALL, "--output", place, "--quiet")
            if done.code:
                raise SystemExit(f"the run without a fault failed: {done.err}")
        return found_in(place)

    def resumed(self, output: Path) -> Iterator[str]:
        """What is wrong with the small run in `output` once it is resumed to its end."""
        begun = (output / "recipe.yaml").exists()
        done = self.lmflow(*(["run", "--resume"] if begun else SMALL), "--output", output, "--quiet")
        yield from done.wrong(0)
        if done.code == 0:
            yield from (f"{name} differs" for name in differences(self.expected(), found_in(output)))
            yield from remains(output)


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)
        return Ended(None, "", "")
    return Ended(process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """End a command and what it started, as when a machine fails."""
    for each in (process.pid, *descendants(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate()


def until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> bool:
    """Wait until something is there, or the command has ended; whether it is there."""
    started = time.monotonic()
    while not ready() and process.poll() is None and time.monotonic() - started < SECONDS:
        time.sleep(0.02)
    return ready()


def remains(folder: Path) -> Iterator[str]:
    """Hidden files that a command left."""
    found = sorted(str(each.relative_to(folder)) for each in folder.rglob(".*.partial"))
    if found:
        yield f"left {', '.join(found[:3])}"
