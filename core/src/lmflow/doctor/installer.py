"""The command that installs packages for this very Python, so that a remedy can be pasted as it stands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path


def pip(arguments: str) -> str:
    """`pip ARGUMENTS` as it must be typed here: the pip found first may be another Python's, and uv brings none."""
    executable = Path(sys.executable)
    if find_spec("pip") is None:
        here = os.environ.get("VIRTUAL_ENV") == sys.prefix
        verb, _, rest = arguments.partition(" ")
        return f"uv pip {arguments}" if here else f"uv pip {verb} --python {shlex.quote(str(executable))} {rest}"
    found = shutil.which("pip")
    if found and Path(found).parent == executable.parent:
        return f"pip {arguments}"
    return f"{shlex.quote(str(executable))} -m pip {arguments}"
