"""Measures the size of functions, classes and files, and how far the tests go beside them.

    python scripts/measure.py

Prints a line per figure: median and 95th percentile of the lines of a function, the largest class, files over 400
lines, modules of 150 lines and more that have no test file of their own, and lines of tests per line of source.
`tests/core/test_architecture.py` holds the bounds.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "core" / "src", *sorted(ROOT.glob("plugins/*/src")), *sorted(ROOT.glob("lmflow_plugins_*/src")))
TESTS = ROOT / "tests"
LONG_FILE = 400
"""Lines that few files have more of."""
NEEDS_TWIN = 150
"""Lines from which on a module has a test file of its own."""


@dataclass(frozen=True, order=True)
class Part:
    """A function, class or file by its number of lines."""

    lines: int
    place: str


def sources() -> Iterator[tuple[Path, Path]]:
    """Every module of every distribution, and the folder its package lies in."""
    for folder in SOURCES:
        yield from ((file, folder) for file in sorted(folder.rglob("*.py")))


def line_count(file: Path) -> int:
    """Lines of a file, empty ones and comments included."""
    return len(file.read_text(encoding="utf-8").splitlines())


def definitions(*kinds: type[ast.FunctionDef] | type[ast.AsyncFunctionDef] | type[ast.ClassDef]) -> list[Part]:
    """Definitions of these kinds in all sources, decorators left out."""
    found = []
    for file, _ in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                place = f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
                found.append(Part((node.end_lineno or node.lineno) - node.lineno + 1, place))
    return found


def functions() -> list[Part]:
    """Functions and methods."""
    return definitions(ast.FunctionDef, ast.AsyncFunctionDef)


def classes() -> list[Part]:
    """Classes, with all in them."""
    return definitions(ast.ClassDef)


def files() -> list[Part]:
    """Modules."""
    return [Part(line_count(file), str(file.relative_to(ROOT))) for file, _ in sources()]


def quantile(parts: Sequence[Part], share: float) -> int:
    """The lines that this share of the parts has at most."""
    ordered = sorted(part.lines for part in parts)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def twin(file: Path, folder: Path) -> Path:
    """Where the tests of a module stand: lmflow/run/log.py has tests/core/run/test_log.py."""
    package, *inner = file.relative_to(folder).with_suffix("").parts
    home = "core" if package == "lmflow" else package.removeprefix("lmflow_")
    if not inner or inner[-1] == "__init__":
        inner = [*inner[:-1], inner[-2] if len(inner) > 1 else package]
    return TESTS.joinpath(home, *inner[:-1], f"test_{inner[-1]}.py")


def has_twin(file: Path, folder: Path) -> bool:
    """Whether a module's tests stand where they belong; those of a suite of tests may be called test_NAME_suite.py."""
    place = twin(file, folder)
    return place.is_file() or place.with_name(f"{place.stem}_suite.py").is_file()


def without_twin() -> list[Part]:
    """Modules of NEEDS_TWIN lines and more whose test file is not there."""
    long = ((file, folder) for file, folder in sources() if line_count(file) >= NEEDS_TWIN)
    return [Part(line_count(file), str(file.relative_to(ROOT))) for file, folder in long if not has_twin(file, folder)]


def test_ratio() -> float:
    """Lines of tests per line of source."""
    return sum(line_count(file) for file in TESTS.rglob("*.py")) / sum(part.lines for part in files())


def main() -> None:
    """Print all figures."""
    every = functions()
    median = statistics.median(part.lines for part in every)
    largest = max(classes())
    print(f"functions: {len(every):,}, median {median:g} lines, 95% at most {quantile(every, 0.95)}")
    print(f"largest class: {largest.lines} lines, {largest.place}")
    for title, parts in (
        (f"files over {LONG_FILE} lines", [part for part in files() if part.lines > LONG_FILE]),
        (f"modules of {NEEDS_TWIN} lines or more without a test file of their own", without_twin()),
    ):
        print(f"{title}: {len(parts) or 'none'}")
        for part in sorted(parts, reverse=True):
            print(f"  {part.lines} {part.place}")
    print(f"test lines per source line: {test_ratio():.2f}")


if __name__ == "__main__":
    main()
