"""What a stage of a recipe may be called: it is a directory's name, and part of an option's."""

from __future__ import annotations

import re

LONGEST = 64
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{,{LONGEST - 1}}}")


def faulty_name(name: str) -> str | None:
    """What is wrong with a stage's name; None if nothing."""
    if NAME.fullmatch(name):
        return None
    return (
        f"{name!r} cannot be the name of a stage, which names a directory too: begin with a letter or digit of ASCII, "
        f"and go on with those, - and _, {LONGEST} characters at most"
    )
