"""Faults on purpose: runs killed and asked to stop, files damaged, disks full, rewards that misbehave; counted.

    python benchmarks/faults.py                          all groups
    python benchmarks/faults.py --group signals rewards  some of them
    python benchmarks/faults.py --out benchmarks/results/faults.md

Each fault is made on a real command and what is left is compared with what there should be. Prints a line for each
fault that did not go well, and a table of counts; exits 1 if there is one. A group is a function of a `Place` that
yields a `Fault` for each it has made, in a module of GROUPS.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fault_commands import Fault, Group, Place

GROUPS = {
    "kills": "fault_groups:kills",
    "signals": "fault_groups:signals",
    "damaged files": "fault_groups:damaged_files",
    "full disks": "fault_groups:full_disks",
    "rewards": "fault_groups:rewards",
}
"""The groups by name, `module:function` beside this file each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the faults, and say how many went well."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", nargs="*", choices=GROUPS, default=list(GROUPS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which processes are killed")
    parser.add_argument("--kills", type=int, default=10, help="how many of each kind")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    given = parser.parse_args(arguments)
    made: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for name in given.group:
        with tempfile.TemporaryDirectory(prefix="lmflow-faults-") as folder:
            for fault in told(name, group(GROUPS[name])(Place(Path(folder), given.seed, given.kills))):
                made[name] += 1
                wrong[name] += bool(fault.wrong)
    text = table(made, wrong)
    sys.stdout.write(text)
    if given.out is not None:
        given.out.write_text(f"{HEADING}\n{text}", encoding="utf-8")
    return 1 if sum(wrong.values()) else 0


HEADING = """# Faults on purpose

`python benchmarks/faults.py`: what went wrong is a traceback, an exit code that says something else than what happened,
something half written, a run that cannot be resumed, or one that ends otherwise than if there had been no fault.
"""


def group(reference: str) -> Group:
    """The function that makes the faults of a group."""
    module, _, function = reference.partition(":")
    found: Group = getattr(importlib.import_module(module), function)
    return found


def told(name: str, faults: Iterator[Fault]) -> Iterator[Fault]:
    """The faults, each with a line on standard error."""
    for fault in faults:
        sys.stderr.write(f"{name}: {fault.name}: {'; '.join(fault.wrong) or 'well'}\n")
        sys.stderr.flush()
        yield fault


def table(made: Counter[str], wrong: Counter[str]) -> str:
    """A row for each group."""
    rows = [f"| {name} | {count} | {wrong[name]} |" for name, count in made.items()]
    whole = f"| together | {sum(made.values())} | {sum(wrong.values())} |"
    return "\n".join(["| group | faults | went wrong |", "|---|---:|---:|", *rows, whole, ""])


if __name__ == "__main__":
    sys.exit(main())
