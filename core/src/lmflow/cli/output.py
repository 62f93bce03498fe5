"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Within the context what libraries print goes to standard error: standard output is for what was asked for."""
    with redirect_stdout(sys.stderr):
        yield


def print_error(line: str, label: str = "error: ") -> None:
    """One line on standard error."""
    sys.stderr.write(f"{label}{line}\n")
