"""Installing and removing plugins with the installer of this very Python, and looking at what came of it."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import invalidate_caches
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmflow.errors import PluginError
from lmflow.plugins import CORE, GROUP, normal_name, same_name
from lmflow.plugins.known import distributions_for
from lmflow.terminal import write_error

ARCHIVES = (".whl", ".tar.gz", ".zip")


@dataclass(frozen=True)
class Installed:
    """What an installation or removal came to."""

    command: Sequence[str]
    code: int
    """The installer's exit code."""
    plugins: Sequence[Mapping[str, Any]] = ()
    """What is installed now of what was asked for, as `lmflow plugins --json` describes it."""
    problems: Sequence[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """The installer's, or 1 where it succeeded and the result is not what was asked for."""
        return self.code or (1 if self.problems else 0)


def install(targets: Sequence[str], extra: Sequence[str]) -> Installed:
    """Install distributions: by name, requirement, local directory, wheel or URL; `extra` goes to the installer.

    Raises PluginError for what names nothing that can be installed.
    """
    targets = [local_or_named(target) for target in targets]
    names = [name_of(target) for target in targets]
    before = versions()
    command = installer("install", [*extra, *targets])
    code = run(command)
    if code:
        return Installed(command, code)
    changed = {name for name, version in versions().items() if before.get(name) != version}
    wanted = {normal_name(name) for name in names if name} or changed
    state = describe()
    found = [each for each in state["plugins"] if normal_name(each["distribution"]) in wanted]
    problems = [
        f"{each['distribution']} {each['version']} is broken: {each['reason']}; "
        f"see lmflow plugins show {each['distribution']}"
        for each in found
        if each["status"] == "broken"
    ]
    present = {normal_name(each["distribution"]) for each in found}
    problems += [
        f"{name} is installed and is no plugin: it has no entry point in the group {GROUP}"
        for name in sorted(wanted - present)
    ]
    if not wanted:
        problems.append(f"nothing that was installed has an entry point in the group {GROUP}")
    return Installed(command, 0, found, problems)


def uninstall(name: str, extra: Sequence[str]) -> Installed:
    """Remove a plugin's distribution. Raises PluginError for the core, and for what is no plugin."""
    if same_name(name, CORE):
        raise PluginError(f"{CORE} is not uninstalled from here: nothing works without it")
    present = list(versions())
    if normal_name(name) not in present:
        near = difflib.get_close_matches(normal_name(name), present, n=1)
        homes = [home for home in distributions_for(name) if normal_name(home) in present]
        hint = f"did you mean {near[0]}?" if near else "lmflow plugins lists them"
        hint = f"it is a component of {homes[0]}" if homes else hint
        raise PluginError(f"no installed plugin is called {name}; {hint}")
    command = installer("uninstall", [*extra, name])
    code = run(command)
    left = normal_name(name) in versions()
    return Installed(command, code, (), [f"{name} is still installed"] if left and not code else [])


def local_or_named(target: str) -> str:
    """What the installer is given: a directory that holds a project is one, even where an index has its name.

    Raises PluginError for a path that is not there and for a component's name, which may be somebody else's
    distribution.
    """
    path = Path(target)
    if (path / "pyproject.toml").is_file() or (path / "setup.py").is_file():
        return str(path) if path.is_absolute() or target.startswith(".") else f"./{path}"
    if "://" in target or " @ " in target:
        return target
    if ("/" in target or target.startswith(".") or target.endswith(ARCHIVES)) and not path.is_file():
        raise PluginError(f"{target}: there is no such directory with a pyproject.toml, and no such file")
    homes = distributions_for(target)
    if homes and not path.exists():
        raise PluginError(f"{target} is a component of {homes[0]}; install that: lmflow plugins install {homes[0]}")
    return target


def name_of(target: str) -> str | None:
    """The distribution that a target is; None where only the installer will know."""
    path = Path(target)
    if path.is_dir():
        project = path / "pyproject.toml"
        try:
            stated = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name")
        except (OSError, ValueError):
            return None
        return stated if isinstance(stated, str) else None
    if target.endswith(".whl"):
        return path.name.partition("-")[0]
    if target.endswith(ARCHIVES):
        return path.name.rpartition("-")[0] or None
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", target)
    return found[0].rstrip("._-") if found and "://" not in target.partition(" @ ")[0] else None


def installer(verb: str, words: Sequence[str]) -> list[str]:
    """The command that installs for this Python: uv where uv made its environment or pip is missing, else its pip.

    Raises PluginError where there is neither.
    """
    uv = shutil.which("uv")
    if uv and (find_spec("pip") is None or made_by_uv()):
        return [uv, "pip", verb, "--python", sys.executable, *words]
    if find_spec("pip") is None:
        raise PluginError(f"{sys.executable} has no pip, and uv is not found; install one of them")
    return [sys.executable, "-m", "pip", verb, *(["--yes"] if verb == "uninstall" else []), *words]


def made_by_uv() -> bool:
    """Whether uv made this environment."""
    try:
        lines = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.partition("=")[0].strip() == "uv" for line in lines)


def run(command: Sequence[str]) -> int:
    """Run the installer, whose output goes to standard error; returns its exit code."""
    write_error(f"$ {shlex.join(command)}\n")
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode
    invalidate_caches()
    return code


def versions() -> dict[str, str]:
    """Versions of the distributions with plugins, by normalised name; none is imported."""
    found = [point.dist for point in entry_points(group=GROUP) if point.dist is not None]
    return {normal_name(each.name): each.version for each in found}


def describe() -> Any:
    """What `lmflow plugins --json` says in a process of its own, which imports anew what has changed.

    Raises PluginError where that fails.
    """
    command = [sys.executable, "-P", "-m", "lmflow", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise PluginError(f"installed, and lmflow does not start any more: {last}") from None
