"""What `import lmflow` costs beyond Python itself: processor seconds of fresh processes, interleaved.

Usage: python benchmarks/importing.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from startup import processor_seconds

RESULT = Path(__file__).parent / "results" / "importing.md"
PROGRAMS = {
    "Python alone": "pass",
    "`import lmflow`": "import lmflow",
    "`lmflow.Aligner`: pydantic, the components": "import lmflow; lmflow.Aligner",
    "`lmflow.load_plugins()`: all installed plugins": "import lmflow; lmflow.load_plugins()",
}


def main() -> None:
    """Measure alternately, and write the least of each beyond Python alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    least = dict.fromkeys(PROGRAMS, float("inf"))
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            least[name] = min(least[name], processor_seconds(sys.executable, "-c", program))
    base, *_ = least.values()
    rows = [f"| {name} | {1000 * (seconds - base):.0f} |" for name, seconds in least.items() if seconds != base]
    text = [
        "# What importing costs",
        "",
        f"Milliseconds of processor time beyond Python itself ({1000 * base:.0f} ms), the least of {rounds} fresh",
        f"processes, measured alternately by `python benchmarks/importing.py`; Python {platform.python_version()}.",
        "",
        "| what | ms |",
        "|---|---|",
        *rows,
    ]
    RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
