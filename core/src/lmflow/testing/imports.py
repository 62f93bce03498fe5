"""What a piece of work imports, seen in a process of its own: what every command pays for has to be light."""

from __future__ import annotations

import subprocess
import sys

REPORT = """
import sys
sys.stderr.write(",".join(each for each in ("torch", "transformers", "datasets") if each in sys.modules))
"""


def heavy_libraries(program: str, argument: str, *, expected: str) -> str:
    """The heavy libraries, joined by commas, that are loaded once `program` has run with `argument` in sys.argv.

    Fails where it does not run; `expected` says what it was to do.
    """
    command = [sys.executable, "-c", f"{program}\n{REPORT}", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"expected {expected} in a new process; found {done.stderr[-500:]}"
    return done.stderr.rpartition("\n")[2]
