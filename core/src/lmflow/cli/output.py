"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

from contextlib import suppress

from lmflow.api.quiet import stdout_for_results as stdout_for_results
from lmflow.terminal import write_error


def print_error(line: str, label: str = "error: ") -> None:
    """One line on standard error."""
    with suppress(OSError):  # the terminal has gone, as after SIGHUP: the exit code still tells
        write_error(f"{label}{line}\n")
