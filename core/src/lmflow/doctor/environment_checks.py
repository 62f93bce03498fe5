"""Does anything around the command mislead it? Environment variables, and files that would be imported by mistake."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path

from lmflow.doctor.finding import Finding
from lmflow.plugins import normal_name

NAME = "environment"
SLOW_FROM = 4
"""Cores from which a single thread wastes most of the machine."""


def usable_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_environment(environment: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Variables that quietly change what libraries do; none of them is a fault."""
    notes = list(_notes(environment, cores))
    yield from (Finding(NAME, "ok", text, remedy) for text, remedy in notes)
    if not notes:
        yield Finding(NAME, "ok", "No variable is set that keeps libraries from the hub or from the processor.")


def _notes(environment: Mapping[str, str], cores: int) -> Iterator[tuple[str, str]]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            text = f"{name}={environment[name]}: nothing is downloaded; hub names mean what is in the cache already."
            yield text, f"unset {name}"
    if environment.get("OMP_NUM_THREADS") == "1" and cores >= SLOW_FROM:
        text = f"OMP_NUM_THREADS=1: what computes on the CPU uses one of its {cores} cores."
        yield text, "unset OMP_NUM_THREADS"
    if environment.get("TOKENIZERS_PARALLELISM", "false").lower() not in ("false", "0", "off", "no", "f", "n", ""):
        value = environment["TOKENIZERS_PARALLELISM"]
        text = (
            f"TOKENIZERS_PARALLELISM={value}: tokenizers start threads of their own, which processes forked later lack."
        )
        yield text, "unset TOKENIZERS_PARALLELISM"


def check_shadows(directory: Path, packages: Collection[str], path: Sequence[str] = sys.path) -> Iterator[Finding]:
    """Files in the working directory with the name of a module that lmflow imports.

    The installed command does not look there, but `python -m lmflow` and `torchrun -m lmflow` look there first.
    `packages` are the distributions that lmflow and its plugins need, normalised.
    """
    elsewhere = [each for each in path if Path(each or ".").resolve() != directory.resolve()]
    for file in sorted(directory.iterdir()):
        name = _module_name(file)
        if name and _is_needed(name, packages, elsewhere):
            text = (
                f"{file.name} in this directory hides the module {name} from python -m lmflow and torchrun -m lmflow."
            )
            other = f"my_{file.name}"
            yield Finding("directory", "warning", text, f"mv {shlex.quote(file.name)} {shlex.quote(other)}")


def _module_name(file: Path) -> str | None:
    """The module Python would find there, if any."""
    if file.suffix == ".py":
        return file.stem
    return file.name if (file / "__init__.py").is_file() else None


def _is_needed(name: str, packages: Collection[str], path: Sequence[str]) -> bool:
    """Whether a module of that name, found elsewhere, is Python's own or of one of the packages."""
    if name in sys.stdlib_module_names:
        return True
    if PathFinder.find_spec(name, list(path)) is None:
        return False
    owners = {normal_name(owner) for owner in packages_distributions().get(name, ())}
    return bool(owners & set(packages)) or name == "lmflow"
