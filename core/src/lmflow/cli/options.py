"""Options of the chosen components: read from the command line before Typer sees it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel

from lmflow.errors import RecipeError
from lmflow.plugins import Plugins
from lmflow.recipe.recipe import ResolvedRecipe
from lmflow.recipe.settings import RUN_SCOPE, STAGES, TRACKERS, Origin, Scope, Setting
from lmflow.recipe.stages import StagedRecipe, resolve_recipe
from lmflow.recipe.values import is_flag, may_stand_alone

NUMBER = re.compile(r"^-\d|^-\.\d")
TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass
class Scanned:
    """What the command line sets, what is left for Typer, and what is wrong already."""

    settings: list[Setting] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def wants_help(self) -> bool:
        """Whether --help is given."""
        return "--help" in self.rest or "-h" in self.rest

    @property
    def recipe_file(self) -> Path | None:
        """The recipe's file, if one is given."""
        files = [word for word in self._positional() if not word.startswith("-")]
        return Path(files[0]) if files else None

    def _positional(self) -> list[str]:
        words, skip = [], False
        for word in self.rest:
            if skip:
                skip = False
            elif word in ("--output", "--format"):
                skip = True
            else:
                words.append(word)
        return words


def scan(arguments: Sequence[str], plugins: Plugins, fixed: Mapping[str, bool], scope: Scope = RUN_SCOPE) -> Scanned:
    """Take `--slot NAME` and `--section.option VALUE` out of the arguments.

    `fixed` names the command's own options and whether each takes a value. Every other option becomes a problem with
    the nearest name, so that all mistakes are reported at once.
    """
    scanned = Scanned()
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            scanned.rest.append(word)
            continue
        option, equals, value = word.partition("=")
        if option in fixed or option == "--help":
            scanned.rest.append(word)
            if fixed.get(option) and not equals and words:
                scanned.rest.append(words.pop(0))
        elif _is_setting(option, scope):
            flags = _flags(scope.aliases.get(option, option.removeprefix("--")), arguments, plugins, scope)
            _take_setting(option, value if equals else None, words, flags, scope, scanned)
        else:
            scanned.problems.append(_unknown(option, fixed, scope))
            if not equals and words and not words[0].startswith("-"):
                words.pop(0)
    return scanned


def _is_setting(option: str, scope: Scope) -> bool:
    name = option.removeprefix("--").removeprefix("no-")
    return "." in name or name in scope.slots or option in scope.aliases or (scope.trackers and name == TRACKERS)


def _take_setting(
    option: str, value: str | None, words: list[str], flags: Sequence[bool], scope: Scope, scanned: Scanned
) -> None:
    """Add what an option sets; `flags` says of each component that has it whether there it stands alone."""
    path = scope.aliases.get(option, option.removeprefix("--"))
    if path.startswith("no-"):
        path, value = path.removeprefix("no-"), "false"
    elif value is None and flags and all(flags):
        value = words.pop(0) if words and words[0].lower() in TRUTHS else "true"
    elif value is None and any(flags) and (not words or words[0].startswith("-")):
        value = "true"
    elif value is None and words and (not words[0].startswith("-") or NUMBER.match(words[0])):
        value = words.pop(0)
    if value is None and "." in path and not flags:
        value = "true"  # an option of nothing that is chosen, which resolving the others tells with the nearest name
    if value is None:
        scanned.problems.append(f"{option}: needs a value")
    else:
        scanned.settings.append(Setting(path, value, Origin("option", option)))


def _flags(path: str, arguments: Sequence[str], plugins: Plugins, scope: Scope) -> list[bool]:
    """Whether the option is a flag, for the component that the arguments name, or for every one that has it."""
    section, _, key = path.partition(".")
    if section == STAGES and key.count(".") > 1:
        return _flags(key.partition(".")[2], arguments, plugins, scope)
    if section in scope.sections and key in scope.sections[section].model_fields:
        field = scope.sections[section].model_fields[key]
        return [is_flag(field), *([True] if may_stand_alone(field) else [])]
    slot, key = ("tracker", key.rpartition(".")[2]) if section == TRACKERS else (section, key)
    owners: list[type[BaseModel]] = [offers[0].component for offers in plugins.offers(slot).values()]
    if named := _named(f"--{slot}", arguments):
        owners = [owner for owner in owners if getattr(owner, "name", "") in named] or owners
    return [is_flag(owner.model_fields[key]) for owner in owners if key in owner.model_fields]


def _named(option: str, arguments: Sequence[str]) -> set[str]:
    """The words of the name that an option gives a slot: NAME, DISTRIBUTION:NAME or NAME:VALUE."""
    values = [value for word, value in pairwise(arguments) if word == option]
    values += [word.partition("=")[2] for word in arguments if word.startswith(f"{option}=")]
    return {part for value in values for part in value.split(":")}


def _unknown(option: str, fixed: Mapping[str, bool], scope: Scope) -> str:
    plural = [f"--{TRACKERS}"] if scope.trackers else []
    known = [*fixed, *scope.aliases, *(f"--{slot}" for slot in scope.slots), *plural]
    near = difflib.get_close_matches(option, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"lmflow {scope.command} --help lists them"
    return f"{option}: unknown option; {hint}"


def resolve_scanned(scanned: Scanned, plugins: Plugins, file: Path | None) -> ResolvedRecipe | StagedRecipe:
    """The recipe of a command line, or its stages; raises RecipeError with everything wrong in it."""
    try:
        resolved = resolve_recipe(plugins, file, scanned.settings)
    except RecipeError as error:
        raise RecipeError([*scanned.problems, *error.problems]) from None
    if scanned.problems:
        raise RecipeError(scanned.problems)
    return resolved
