"""Following a page literally: its blocks in order, in one directory, each held to what it says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from .pages import Block
from .terminal import Terminal, commands, is_excerpt

AS_PLUGIN = (
    "from importlib.metadata import EntryPoint; from lmflow.plugins import load_plugins; "
    "print(*(each.traceback for each in load_plugins([EntryPoint('page', '{module}', 'lmflow')]).broken))"
)


class Follower:
    """Somebody who does what a page says. A test fails, naming the block, where that cannot be done."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._printed: str | None = None
        self._scripts = 0
        self._kinds: dict[str, Callable[[Block], None]] = {
            "console": self._run_commands,
            "python": self._run_script,
            "yaml": self._resolve_recipe,
            "json": self._compare_record,
            "text": self._compare_output,
        }

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if block.not_run is not None:
            insist(len(block.not_run.split()) > 2, block, "say why it is not run by the tests")
        elif block.title is not None:
            self._write_file(block, block.title)
        else:
            kinds = ", ".join(self._kinds)
            wanted = f'a block is {kinds}, a file with title="PATH", or says above itself why it is not run'
            insist(block.language in self._kinds, block, f"it is called {block.language or 'nothing'}; {wanted}")
            self._kinds[block.language](block)

    def _write_file(self, block: Block, title: str) -> None:
        file = self._terminal.directory / title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")

    def _run_commands(self, block: Block) -> None:
        for command, shown in commands(block.text):
            self._run(block, command)
            insist(is_excerpt(shown, self._printed or ""), block, f"$ {command}\n{self._difference(shown)}")

    def _run(self, block: Block, command: str) -> None:
        answer = self._terminal.run(command)
        exits = f"$ {command}\nexits with {answer.code}, not {block.exit_code}\n{answer.text}"
        insist(answer.code == block.exit_code, block, exits)
        self._printed = answer.text

    def _run_script(self, block: Block) -> None:
        """Python without a title is a script; one with hooks must load as a plugin too."""
        self._scripts += 1
        module = f"page_{self._scripts}"
        self._write_file(block, f"{module}.py")
        self._run(block, f"python {module}.py")
        if "@hookimpl" in block.text:
            self._run(block, f'python -c "{AS_PLUGIN.format(module=module)}"')
            insist(not (self._printed or "").strip(), block, f"it is no working plugin\n{self._printed}")

    def _resolve_recipe(self, block: Block) -> None:
        self._write_file(block, "page.yaml")
        self._run(block, "lmflow recipe show page.yaml")

    def _compare_record(self, block: Block) -> None:
        shown, printed = json.loads(block.text), first_object(self._printed or "")
        insist(is_like(shown, printed), block, self._difference(block.text))

    def _compare_output(self, block: Block) -> None:
        insist(self._printed is not None, block, "it shows output, and nothing was run before it")
        insist(is_excerpt(block.text, self._printed or ""), block, self._difference(block.text))

    def _difference(self, shown: str) -> str:
        return f"The page shows\n{shown}\nand this was printed:\n{self._printed}"


def insist(condition: bool, block: Block, otherwise: str) -> None:
    """Fail, naming the block, unless the condition holds."""
    if not condition:
        pytest.fail(f"{block.place}: {otherwise}", pytrace=False)


def first_object(printed: str) -> Any:
    """The first JSON object that begins a line; None if there is none."""
    found = re.search(r"^\{", printed, flags=re.MULTILINE)
    return json.JSONDecoder().raw_decode(printed, found.start())[0] if found else None


def is_like(shown: Any, printed: Any) -> bool:
    """Whether two JSON values are equal: fractions to a hundredth of themselves, `…` in a text for anything."""
    if isinstance(shown, dict) and isinstance(printed, dict):
        return shown.keys() == printed.keys() and all(is_like(shown[key], printed[key]) for key in shown)
    if isinstance(shown, list) and isinstance(printed, list):
        return len(shown) == len(printed) and all(map(is_like, shown, printed))
    if isinstance(shown, float) and isinstance(printed, float):
        return math.isclose(shown, printed, rel_tol=0.01)
    if isinstance(shown, str) and isinstance(printed, str):
        return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), printed, flags=re.DOTALL) is not None
    return bool(shown == printed)
