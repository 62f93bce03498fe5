"""Do the installed packages fit? Requirements, Python's version, and distributions installed twice."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmflow.doctor.finding import Finding
from lmflow.doctor.installer import pip
from lmflow.plugins import normal_name

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "packages"
NAMED = ("torch", "transformers", "accelerate", "peft")
"""Packages whose versions the line about health gives."""


@dataclass
class Demands:
    """What the distributions looked at ask of one package."""

    requirements: list[tuple[str, Requirement]] = field(default_factory=list)
    """Each with the name and version of who asks."""
    direct: bool = False
    """Whether one of those is lmflow or a plugin itself, not something they depend on."""

    @property
    def together(self) -> str:
        """One requirement that means them all, as pip takes it."""
        requirements = [requirement for _, requirement in self.requirements]
        urls = [requirement.url for requirement in requirements if requirement.url]
        if urls:
            return f"{requirements[0].name} @ {urls[0]}"
        specifiers = requirements[0].specifier
        for requirement in requirements[1:]:
            specifiers &= requirement.specifier
        return f"{requirements[0].name}{specifiers}"


def index(distributions: Iterable[Distribution]) -> dict[str, Distribution]:
    """Installed distributions by normalised name; of several with one name the first, which Python imports."""
    found: dict[str, Distribution] = {}
    for distribution in distributions:
        if name := name_of(distribution):
            found.setdefault(name, distribution)
    return found


def name_of(distribution: Distribution) -> str:
    """A distribution's normalised name, "" for a folder that an interrupted installation left without metadata."""
    try:
        return normal_name(distribution.name)
    except (AttributeError, KeyError, OSError, TypeError):  # it depends on the version of Python
        return ""


def check_requirements(roots: Iterable[str], installed: Mapping[str, Distribution]) -> Iterator[Finding]:
    """Whether all that lmflow and its plugins ask for, and what that asks for in turn, is there in a fitting version.

    `roots` names the distributions of lmflow and its plugins, `installed` is what `index` returns.
    """
    roots = [normal_name(root) for root in roots]
    demands = collect_demands(roots, installed)
    faults = [
        finding for name, each in demands.items() for finding in _check_requirement(name, each, installed.get(name))
    ]
    faults += [finding for name in [*roots, *demands] for finding in _check_python(installed.get(name))]
    yield from faults
    if not faults:
        versions = [f"{name} {installed[name].version}" for name in NAMED if name in installed]
        python = platform.python_version()
        text = f"Python {python}, {', '.join(versions)}: every requirement of lmflow and plugins is met."
        yield Finding(NAME, "ok", text)


def check_duplicates(names: Iterable[str], distributions: Sequence[Distribution]) -> Iterator[Finding]:
    """Distributions that are installed twice, or by halves; `names` are those of interest, normalised.

    What a package carries in a folder of its own, as setuptools does, is its own business and not looked at.
    """
    folders: dict[str, dict[Path, Distribution]] = {name: {} for name in names}
    for each in distributions:
        folder = folder_of(each)
        if any((parent / "__init__.py").exists() for parent in folder.parents):
            continue
        name = name_of(each)
        left = "" if name else normal_name(folder.name.partition("-")[0])
        if left in folders:
            text = f"{folder} was left by an interrupted installation of {left}, and may be taken for it."
            yield Finding(NAME, "warning", text, f"rm -r {shlex.quote(str(folder))}")
        elif name in folders and folder.suffix != ".egg-info":  # which an editable installation has beside its own
            folders[name].setdefault(folder, each)
    for name, found in folders.items():
        if len(found) > 1:
            yield _check_duplicate(name, *list(found.values())[:2])


def requirement_closure(roots: Iterable[str], installed: Mapping[str, Distribution]) -> set[str]:
    """Names of the distributions and of all they need, normalised."""
    names = [normal_name(root) for root in roots]
    return {*names, *collect_demands(names, installed)}


def collect_demands(roots: Sequence[str], installed: Mapping[str, Distribution]) -> dict[str, Demands]:
    """What is asked of each package, by normalised name, following requirements to their end."""
    demands: dict[str, Demands] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset()) for root in roots]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        distribution = installed.get(name)
        for requirement in _requirements(distribution, extras) if distribution else ():
            needed = normal_name(requirement.name)
            asked = demands.setdefault(needed, Demands())
            asked.requirements.append((f"{distribution.name} {distribution.version}", requirement))  # type: ignore[union-attr]
            asked.direct |= name in roots
            then = needed, frozenset(requirement.extras)
            if then not in seen:
                seen.add(then)
                waiting.append(then)
    return demands


def folder_of(distribution: Distribution) -> Path:
    """Where a distribution's metadata lies."""
    where: Any = getattr(distribution, "_path", "")  # importlib.metadata has no public name for it
    return Path(str(where)).resolve()


def _requirements(distribution: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """Those that hold here, for these extras."""
    from packaging.requirements import Requirement

    for text in distribution.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _check_requirement(name: str, demands: Demands, found: Distribution | None) -> Iterator[Finding]:
    if found is None:
        who, requirement = demands.requirements[0]
        text = f"{who} needs {requirement.name}{requirement.specifier}, which is not installed."
        yield Finding(NAME, "error", text, pip(f"install {shlex.quote(demands.together)}"))
        return
    unmet = [
        (who, requirement)
        for who, requirement in demands.requirements
        if not requirement.specifier.contains(found.version, prereleases=True)
    ]
    if unmet:
        asked = " and ".join(f"{who} needs {requirement.name}{requirement.specifier}" for who, requirement in unmet)
        text = f"{asked}, but {name} {found.version} is installed: calls between them may fail or mean something else."
        yield Finding(
            NAME, "error" if demands.direct else "warning", text, pip(f"install {shlex.quote(demands.together)}")
        )


def _check_python(distribution: Distribution | None) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = distribution.metadata.json.get("requires_python") if distribution else None
    python = platform.python_version()
    if distribution and wanted and not SpecifierSet(str(wanted)).contains(python, prereleases=True):
        text = f"{distribution.name} {distribution.version} needs Python {wanted}, and this is {python}."
        yield Finding(NAME, "error", text, pip(f"install --upgrade {distribution.name}"))


def _check_duplicate(name: str, first: Distribution, second: Distribution) -> Finding:
    one, other = folder_of(first), folder_of(second)
    text = (
        f"{name} is installed twice: {first.version} in {one.parent}, which is imported, and {second.version} in "
        f"{other.parent}. Upgrades may change the one that is not used."
    )
    if one.parent == other.parent:
        text = (
            f"{name} is installed twice in {one.parent}, as {first.version} and {second.version}: files may be mixed."
        )
        again = pip(f"install --force-reinstall --no-deps {name}")
        return Finding(NAME, "error", text, f"rm -r {shlex.quote(str(one))} {shlex.quote(str(other))}\n{again}")
    return Finding(NAME, "warning", text, f"rm -r {shlex.quote(str(other))}")
