"""A terminal for the commands of a page: each runs in bash, and finds directory and variables as the last left them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

STAND_INS = Path(__file__).with_name("stand_ins.py")
COLUMNS = 100
TIMEOUT = 1200


@dataclass(frozen=True)
class Answer:
    """What a command printed, on both outputs together as a terminal shows them, and what it exited with."""

    code: int
    text: str


class Terminal:
    """One page's shell. Its commands are real, but for those that `stand_ins.py` shortens or keeps off the network."""

    def __init__(self, place: Path, state: Path, environment: Mapping[str, str], stand_ins: tuple[str, ...]) -> None:
        self._place = place
        self._environment = {**environment, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PWD": str(place)}
        kept = shlex.quote(str(state))
        self._prelude = "\n".join(
            [
                f'[ -f {kept} ] && . {kept} && cd "$PWD"',
                f"trap 'code=$?; declare -px > {kept}; exit $code' EXIT",
                "set -o pipefail",
                *map(stand_in, stand_ins),
            ]
        )

    def run(self, command: str) -> Answer:
        """Run one command line as somebody at a terminal would, except that nothing is typed into it."""
        done = subprocess.run(
            ["bash", "-c", f"{self._prelude}\n{command}\n"],
            cwd=self._place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        return Answer(done.returncode, done.stdout)

    @property
    def directory(self) -> Path:
        """Where the next command runs."""
        return Path(self.run("pwd").text.strip())


def stand_in(name: str) -> str:
    """A function of bash's, so that no directory put on PATH hides it."""
    return f'{name}() {{ {shlex.join([sys.executable, str(STAND_INS), name])} "$@"; }}'


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the lines shown as its output.

    Raises ValueError for lines above the first command.
    """
    command, shown = "", ""
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            if not command:
                raise ValueError(f"a line above the first command: {line!r}")
            shown += line + "\n"
            continue
        if command:
            yield command, shown
        command, shown = line.removeprefix("$ "), ""
        while command.endswith("\\"):
            command += "\n" + next(lines).removeprefix("> ")
    if command:
        yield command, shown


def is_excerpt(shown: str, printed: str) -> bool:
    """Whether lines stand in what was printed, in order and next to each other.

    `…` alone on a line is any number of lines, within a line anything.
    """
    lines = (line.rstrip() for line in shown.strip("\n").splitlines())
    patterns = (
        r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"\n" for line in lines
    )
    actual = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
    return re.search("^" + "".join(patterns), actual, flags=re.MULTILINE) is not None
