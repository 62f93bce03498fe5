"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import sys
from contextlib import suppress

from lmflow.api.quiet import stdout_for_results as stdout_for_results


def print_error(line: str, label: str = "error: ") -> None:
    """One line on standard error."""
    with suppress(OSError):  # the terminal has gone, as after SIGHUP: the exit code still tells
        sys.stderr.write(f"{label}{line}\n")
        sys.stderr.flush()
