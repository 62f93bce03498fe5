"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import sys

from lmflow.api.quiet import stdout_for_results as stdout_for_results


def print_error(line: str, label: str = "error: ") -> None:
    """One line on standard error."""
    sys.stderr.write(f"{label}{line}\n")
