"""The pages of the documentation, taken apart: fenced blocks, code in the text, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
GENERATED = ("docs/commands.md", "docs/plugins/reference.md")
"""Made by docs/generate_*.py and compared as a whole, so their blocks are not executed one by one."""
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("lmflow_plugins_*/README.md")),
]
FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<info>.*)$")
TITLE = re.compile(r'title="([^"]+)"')
REMARK = re.compile(r"<!--((?:(?!-->).)*)-->\s*\Z", flags=re.DOTALL)
INDENTED = re.compile(r"(?:\A|\n)(?![ \d*-])[^\n]*\n\n(?: {4}|\t)[^\n]*")
"""A paragraph outside lists, and below it what Markdown takes for code because it is indented."""


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what its fence and the comment directly above it say, and what it holds."""

    page: Path
    line: int
    end: int
    language: str
    title: str | None
    remark: str
    text: str

    @property
    def place(self) -> str:
        """How to find it."""
        return f"{name_of(self.page)}:{self.line}"

    @property
    def not_run(self) -> str | None:
        """Why it is not executed; None if it is."""
        said, colon, reason = self.remark.partition(":")
        return reason.strip() if said == "not run by the tests" and colon else None

    @property
    def exit_code(self) -> int:
        """What its commands exit with."""
        found = re.fullmatch(r"exits with (\d+)", self.remark)
        return int(found[1]) if found else 0


def name_of(page: Path) -> str:
    """A page's path as a reader knows it."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def executed() -> list[Path]:
    """The pages that are executed: all but the generated ones."""
    return [page for page in PAGES if name_of(page) not in GENERATED]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a fence that is never closed."""
    found, above, lines = [], "", iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = FENCE.match(line)
        if not fence:
            above += line + "\n"
            continue
        indent, language = len(fence["indent"]), fence["info"].strip().partition(" ")[0]
        title, remark = TITLE.search(fence["info"]), REMARK.search(above)
        text = ""
        for _, inner in lines:
            if inner.strip() == fence["marks"]:
                break
            text += inner[indent:] + "\n"
        else:
            raise ValueError(f"{name_of(page)}:{number}: this fence is never closed")
        said = " ".join(remark[1].split()) if remark else ""
        end = number + text.count("\n") + 1
        found.append(Block(page, number, end, language, title[1] if title else None, said, text))
        above = ""
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in blocks(page):
        lines[block.line - 1 : block.end] = [""] * (block.end - block.line + 1)
    return re.sub(r"<!--.*?-->", "", "\n".join(lines), flags=re.DOTALL)


def spans(page: Path) -> list[str]:
    """The pieces of code within a page's sentences, each on one line."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of every link to a page of this repository, each empty where the link has none."""
    return re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(page))


def anchors(page: Path) -> set[str]:
    """What links can lead to: headings as GitHub names them, and anchors of the page's own."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    own = re.findall(r'<a (?:id|name)="([^"]+)"', prose(page))
    return {*own, *(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)}
