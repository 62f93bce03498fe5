"""What the sentences of the documentation name exists: commands, options, files, other pages and their sections."""

from __future__ import annotations

import fnmatch
import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from lmflow.cli import main
from lmflow.plugins import SLOTS, load_plugins

from .pages import PAGES, ROOT, anchors, blocks, executed, links, name_of, spans
from .stand_ins import not_here

OPTION = re.compile(r"--[a-z][\w-]*(?:\.[\w*-]+)*")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:html|json|jsonl|md|py|toml|yaml|yml))")
FOREIGN = {"--no-deps"}
"""Options of other tools that the pages speak of."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_named_exists_and_has_the_options_named(page: Path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for span in spans(page):
        if not re.match(r"lmflow (?=[a-z-])", span):
            continue
        words = shlex.split(span.removesuffix("…"))[1:]
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        shown = capsys.readouterr()
        assert stop.value.code == 0, f"{span}: {shown.err}"
        missing = [option for option in OPTION.findall(span) if option not in OPTION.findall(shown.out)]
        assert not missing, f"{span}: its help does not know {missing}"


@pytest.mark.parametrize("page", executed(), ids=name_of)
def test_every_option_named_exists(page: Path):
    known = options() | {f"--{slot}.{field}" for slot in SLOTS for field in fields(page)}
    for span in spans(page):
        named = OPTION.findall(span) if span.startswith("--") else []
        unknown = [option for option in named if not fnmatch.filter(known, option)]
        assert not unknown, f"{span}: no command has {unknown}"


@cache
def options() -> set[str]:
    """All options of all commands and installed components, with what turns a flag off."""
    commands = OPTION.findall((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"))
    plugins = load_plugins()
    found = {*commands, *FOREIGN}
    for slot in SLOTS:
        for component in plugins.classes(slot):
            section = f"trackers.{component.name}" if slot == "tracker" else slot
            found |= {f"--{section}.{field}" for field in component.model_fields}
    return found | {option.replace("--", "--no-", 1) for option in found}


def fields(page: Path) -> list[str]:
    """The fields of components that the page itself writes."""
    return [name for block in blocks(page) for name in re.findall(r"^ {4}(\w+): .* = Field\(", block.text, flags=re.M)]


def begun(page: Path) -> list[str]:
    """The distributions that the page itself begins."""
    return [name for block in blocks(page) for name in re.findall(r"^\$ lmflow new \S+ (\S+)", block.text, flags=re.M)]


@pytest.mark.parametrize("page", executed(), ids=name_of)
def test_every_other_command_named_can_be_given(page: Path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for span in spans(page):
        command, *words = span.split()
        if command == "make" and words:
            assert words[0] in targets, span
        if command == "python" and words:
            found = find_spec(words[1]) if words[0] == "-m" else (ROOT / words[0]).is_file()
            assert found, span
        if span.startswith("pip install "):
            assert not list(not_here(word for word in shlex.split(span)[2:] if word not in begun(page))), span


@pytest.mark.parametrize("page", executed(), ids=name_of)
def test_every_file_named_is_known(page: Path):
    written = "".join(f"{block.title} {block.text}" for block in blocks(page))
    for span in filter(FILE.fullmatch, spans(page)):
        if (ROOT / span).exists():
            continue
        for part in span.removesuffix(".py").strip("/").split("/"):
            known = re.compile(rf"(?<![\w.-]){re.escape(part)}(?![\w-])")
            assert known.search(written) or known.search(code()), f"{span}: neither the page nor the code has {part}"


@cache
def code() -> str:
    """Every line of the packages and of the template that has a text in it, and the template's paths."""
    sources = [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("*plugins*/**/src/**/*.py")]
    texts = [line for file in sources for line in file.read_text(encoding="utf-8").splitlines() if '"' in line]
    return "\n".join([*texts, *map(str, ROOT.glob("templates/plugin/**/*"))])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), f"{name_of(page)} leads to {path}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {path or 'the page'} has no section {anchor}"


def test_every_page_is_found_from_the_readme():
    found, leaves = set(), {ROOT / "README.md"}
    while leaves:
        found |= leaves
        leaves = {(page.parent / path).resolve() for page in leaves for path, _ in links(page) if path.endswith(".md")}
        leaves -= found
    assert {name_of(page) for page in PAGES if page.parent.is_relative_to(ROOT / "docs")} <= set(map(name_of, found))
