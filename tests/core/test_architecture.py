"""The structure of the packages: no circle of imports, small parts, tests beside their modules, no retired word."""

from __future__ import annotations

import ast
import re
import runpy
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "core" / "src", *ROOT.glob("plugins/*/src"), *ROOT.glob("lmflow_plugins_*/src")]
LARGEST_CLASS = 300
MEDIAN_FUNCTION = 7
LONG_FUNCTION = 25
"""Lines of a class; of half, and of 95%, of the functions."""
LONG_FILES = 2
"""Files over 400 lines."""
TESTS_PER_SOURCE = 0.9
"""Lines of tests per line of source."""

INTERFACES = ("lmflow.components", "lmflow.hookspecs")
"""What these name for type checkers alone, from the layers above, is no dependency: an interface names what it is given."""

RETIRED = {
    r"[Jj]ournal": "run log",
    r"\b([Ff]oresee|[Ff]oresees|[Ff]oreseen|unforeseen|[Ff]oretell|UnforeseeableError)\b": "estimate",
    r"\b(once_per_machine|on_main|is_main|map_shares)\b": "once_per_node, on_rank0, is_rank0, map_sharded",
    r"\b(Replicated|Sharded)\b": "DDP, FSDP",
    r"\b(never_drawn|made_ahead|process_state_kept|home_of|highest_lr|look_at|likeness)\b": "see docs/decisions.md",
    r"\b(trained_tokens|predictors)\b": "num_targets, target_positions",
    r"\b(MOMENTS|Wish|obey|Verdict|judge|open_model|human_formats)\b": "the field's term",
    r"[Nn]umber format": "dtype",
    r"[Cc]ourse of the learning rate": "learning-rate schedule",
    r"[Pp]icture": "image, or plot",
    r"\b([Oo]utline|extras of)\b": "skeleton, model_inputs",
    r"how dearly": "strength of the KL penalty",
}
"""Words this project once had for what the field calls otherwise."""


def modules() -> dict[str, Path]:
    """Every module of every package, by its dotted name."""
    found = {}
    for source in SOURCES:
        for file in source.rglob("*.py"):
            parts = file.relative_to(source).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, tree: ast.AST, known: dict[str, Path], *, for_typing: bool) -> Iterator[str]:
    """Modules of ours that a module imports, deferred imports included, and with `for_typing` those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted = [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            wanted = [each.name for each in node.names]
        else:
            wanted = []
        for each in wanted:
            while each and each not in known:
                each = each.rpartition(".")[0]
            if each and each != name:
                yield each
        yield from imports(name, node, known, for_typing=for_typing)


def test_no_circle_of_imports():
    known = modules()
    graph = {
        name: set(
            imports(name, ast.parse(file.read_text()), known, for_typing=not name.startswith(INTERFACES)),
        )
        for name, file in known.items()
    }
    while leaves := [name for name, wanted in graph.items() if not wanted & graph.keys()]:
        for name in leaves:
            del graph[name]
    # What remains is in a circle, or imports one.
    assert not graph, {name: sorted(wanted & graph.keys()) for name, wanted in graph.items()}


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_class_is_large(name: str):
    tree = ast.parse(modules()[name].read_text())
    sizes = {n.name: (n.end_lineno or 0) - n.lineno + 1 for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_CLASS}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What `scripts/measure.py` defines."""
    return runpy.run_path(str(ROOT / "scripts" / "measure.py"))


def test_functions_are_short(measured: dict[str, Any]):
    found = measured["functions"]()
    assert statistics.median(part.lines for part in found) <= MEDIAN_FUNCTION
    assert measured["quantile"](found, 0.95) <= LONG_FUNCTION


def test_few_files_are_long(measured: dict[str, Any]):
    found = [part for part in measured["files"]() if part.lines > measured["LONG_FILE"]]
    assert len(found) <= LONG_FILES, found


def test_large_modules_have_a_test_file_of_their_own(measured: dict[str, Any]):
    assert measured["without_twin"]() == []


def test_tests_are_nearly_as_long_as_what_they_test(measured: dict[str, Any]):
    assert measured["test_ratio"]() >= TESTS_PER_SOURCE


@pytest.mark.parametrize(
    ("module", "tests"),
    [
        ("core/src/lmflow/errors.py", "core/test_errors.py"),
        ("core/src/lmflow/run/log.py", "core/run/test_log.py"),
        ("core/src/lmflow/cli/__init__.py", "core/cli/test_cli.py"),
        ("core/src/lmflow/__init__.py", "core/test_lmflow.py"),
        ("plugins/lmflow-lora/src/lmflow_lora/lora.py", "lora/test_lora.py"),
        ("plugins/lmflow-lora/src/lmflow_lora/__init__.py", "lora/test_lmflow_lora.py"),
    ],
)
def test_where_a_module_s_tests_stand(measured: dict[str, Any], module: str, tests: str):
    file = ROOT / module
    folder = next(parent for parent in file.parents if parent.name == "src")
    assert measured["twin"](file, folder) == ROOT / "tests" / tests


def texts() -> list[Path]:
    """Source, templates and pages that people read."""
    files = [*modules().values(), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    files += [*(ROOT / "docs").rglob("*.md"), *(ROOT / "templates").rglob("*.jinja")]
    return [file for file in files if file.name != "decisions.md"]


WRITES = re.compile(r"\bsys\.(stdout|stderr)\.write\(|\bConsole\(|\bprint\(")
PRINTERS = ("lmflow/terminal.py", "lmflow/doctor/probes.py", "lmflow/testing/imports.py")
"""The one that all commands print through, and programs that answer the process that started them."""


def test_commands_print_through_the_one_that_shows_what_a_terminal_would_act_on():
    files = [file for source in SOURCES for file in source.rglob("*.py") if not file.as_posix().endswith(PRINTERS)]
    assert len(files) > 200
    found = []
    for file in files:
        tree = ast.parse(file.read_text())
        found += [
            f"{file}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and WRITES.match(ast.unparse(node))
        ]
    assert not found


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_stay_away(word: str):
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for file in texts()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not found, f"say {RETIRED[word]}"
