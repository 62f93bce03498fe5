"""Fails where commits change the source and add no line to the Unreleased section of CHANGELOG.md.

    python scripts/check_changelog.py BASE

BASE is the revision that the changes are to be merged into. A commit that nobody who uses lmflow would notice says so
with a trailer, `Changelog: none`, and is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHANGELOG = "CHANGELOG.md"
SOURCE = re.compile(r"(core|plugins|lmflow_plugins_[^/]+)/.*(?<!\.md)(?<!/LICENSE)")
"""What a user of a distribution gets: its source and its pyproject.toml, not its README."""
UNRELEASED = re.compile(r"^## \[?Unreleased\]?.*?$(.*?)(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)


def git(repository: Path, *arguments: str) -> str:
    """What git prints. Raises SystemExit with git's message if it fails."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def changed_source(repository: Path, base: str) -> list[str]:
    """Source files that differ from the common ancestor with `base`, without those of commits that opt out."""
    differing = set(git(repository, "diff", "--name-only", "--no-renames", f"{base}...HEAD").splitlines())
    counted: set[str] = set()
    for commit in git(repository, "rev-list", "--no-merges", f"{base}..HEAD").split():
        trailer = git(repository, "log", "-1", "--format=%(trailers:key=Changelog,valueonly)", commit)
        if trailer.strip().lower() != "none":
            counted |= set(git(repository, "show", "--name-only", "--no-renames", "--format=", commit).splitlines())
    return sorted(name for name in differing & counted if SOURCE.fullmatch(name))


def entries(text: str) -> set[str]:
    """The lines of the Unreleased section, without headings."""
    section = UNRELEASED.search(text)
    lines = section[1].splitlines() if section else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def added_entries(repository: Path, base: str) -> set[str]:
    """Lines of the Unreleased section that the changelog did not have where HEAD left `base`."""
    ancestor = git(repository, "merge-base", base, "HEAD").strip()
    held = git(repository, "ls-tree", "--name-only", ancestor, CHANGELOG)
    before = git(repository, "show", f"{ancestor}:{CHANGELOG}") if held else ""
    if not git(repository, "ls-tree", "--name-only", "HEAD", CHANGELOG):
        return set()
    return entries(git(repository, "show", f"HEAD:{CHANGELOG}")) - {line.strip() for line in before.splitlines()}


def check(repository: Path, base: str) -> str | None:
    """What is wrong with the changes between `base` and HEAD; None if nothing is."""
    changed = changed_source(repository, base)
    if not changed or added_entries(repository, base):
        return None
    listed = "\n".join(f"  {name}" for name in changed[:10]) + (
        f"\n  and {len(changed) - 10} more" if changed[10:] else ""
    )
    return (
        f"The source changed, and the Unreleased section of {CHANGELOG} has no new line:\n{listed}\n"
        "Add one for those who use lmflow; where they would notice nothing, end the commit message with the line\n"
        "Changelog: none"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the repository that the working directory is in."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1 or given[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    repository = Path(git(Path.cwd(), "rev-parse", "--show-toplevel").strip())
    if fault := check(repository, given[0]):
        print(fault, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
