"""What stands before `lmflow` and `pip` while a page is followed: short runs, nothing downloaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

STEPS = "--training.max_steps"
QUICK_RAFT = {
    "--aligner.iterations": "1",
    "--aligner.prompts": "4",
    "--aligner.samples": "2",
    "--aligner.max_new_tokens": "4",
}


def lmflow(arguments: list[str]) -> NoReturn:
    """`lmflow`, but a run takes two steps, and an iteration of RAFT eight samples."""
    os.execvp("lmflow", ["lmflow", *shortened(arguments)])


def shortened(arguments: list[str]) -> list[str]:
    """The arguments, with options that make a run short; a run that is resumed keeps to its recipe."""
    if arguments[:1] != ["run"] or {"--help", "--resume"} & set(arguments):
        return arguments
    words = list(arguments)
    if STEPS in words:
        place = words.index(STEPS)
        del words[place : place + 2]
    recipes = [Path(word).read_text() for word in words if word.endswith(".yaml") and Path(word).is_file()]
    single = [
        recipe for recipe in recipes if "stages:" not in recipe
    ]  # options are for every stage, and not all have it
    aligned = "raft" in words or any("raft" in recipe for recipe in single)
    extra = {STEPS: "2"} | (QUICK_RAFT if aligned else {})
    return [*words, *(word for pair in extra.items() if pair[0] not in words for word in pair)]


def pip(arguments: list[str]) -> int:
    """`pip install`, but nothing is fetched: what is asked for must be distributions that are here, and their extras."""
    command, *words = arguments
    wrong = list(not_here(words)) if command == "install" else [f"pip {command}: only pip install can be followed here"]
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


def not_here(requirements: Iterable[str]) -> Iterator[str]:
    """What is wrong with each requirement that is not met by what is installed."""
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        try:
            about = metadata(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        known = {extra.lower().replace("_", "-") for extra in about.get_all("Provides-Extra") or ()}
        yield from (f"{requirement.name} has no extra {extra}" for extra in requirement.extras - known)
        if not requirement.specifier.contains(about["Version"]):
            yield f"{requirement}: {about['Version']} is installed"


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    sys.exit({"lmflow": lmflow, "pip": pip}[name](given))
