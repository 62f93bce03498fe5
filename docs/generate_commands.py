"""Write docs/commands.md: the help of every command, those of our own plugins included, as a terminal shows it.

    python docs/generate_commands.py

A test compares the file with what this makes. Plugins that others have installed here are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import typer.main
from generate_reference import first_party_plugins

from lmflow.cli.app import COMMANDS, build_app
from lmflow.plugins import DISABLE, load_plugins

PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Commands

What every command says of itself with `--help`. Options of components (`--tuner.rank`) belong to the component that is
chosen: `lmflow run --tuner lora --help` shows those of `lora`. Made from the code by `make docs`.
"""
COLUMNS = 100


def render() -> str:
    """The whole page."""
    names = list(commands())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = pool.map(help_of, names)
    titles = [" ".join(["lmflow", *name]) for name in names]
    contents = "".join(f"- [`{title}`](#{title.replace(' ', '-')})\n" for title in titles)
    body = "\n".join(f"## {title}\n\n```text\n{text}\n```\n" for title, text in zip(titles, texts))
    return f"{HEAD}\n{contents}\n{body}"


def commands() -> Iterator[tuple[str, ...]]:
    """Every command as its words: none for `lmflow` itself, then the core's in their order, then the plugins'."""
    yield ()
    for name in COMMANDS:
        yield (name,)
        yield from ((name, each) for each in subcommands(name))
    yield from sorted((command.name,) for command, _ in first_party_plugins().commands)


def subcommands(name: str) -> list[str]:
    """The commands of a group, in the order of its help; none if the command is no group."""
    built = build_app([name, "nothing"])
    assert built is not None  # only a wish for help is answered already
    group: Any = typer.main.get_command(built[0])
    return list(getattr(group.commands[name], "commands", {}))


def help_of(words: tuple[str, ...]) -> str:
    """What the command prints for --help."""
    done = subprocess.run(
        [sys.executable, "-m", "lmflow", *words, "--help"],
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


@cache
def environment() -> dict[str, str]:
    """A terminal of 100 columns without colour, and our own plugins alone."""
    ours = {plugin.distribution for plugin in first_party_plugins().loaded}
    others = [name for name in load_plugins(disabled=()).distributions() if name not in ours]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    terminal = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return {**kept, **terminal, DISABLE: ",".join(others)}


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
