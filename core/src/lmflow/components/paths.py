"""Options that name a place on this machine or something elsewhere, such as a model on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

Name = TypeVar("Name", str, None)


def anchored(name: Name) -> Name:
    """The absolute path of what is on this machine, wherever a later command runs; any other name as it is."""
    if name is None:
        return name
    try:
        place = Path(name).expanduser()
        there = place.exists()
    except (OSError, RuntimeError, ValueError):  # no path at all: too long, a zero byte, a user that is not known
        return name
    return os.path.abspath(place) if there else name


PathOrName = Annotated[str, AfterValidator(anchored)]
"""An option's type: a path, saved as an absolute one where something lies there, or a name of something else."""
OptionalPathOrName = Annotated[str | None, AfterValidator(anchored)]
"""The same, for an option that may be left empty."""
