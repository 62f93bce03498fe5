"""A plugin of one's own: a new distribution from the template that comes with lmflow."""

from __future__ import annotations

import contextlib
import difflib
import keyword
import re
import shlex
import sys
import unicodedata
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from lmflow.atomic import move_into_place, scratch_directory
from lmflow.errors import LmflowError, RecipeError, RunDirectoryError
from lmflow.plugins import SLOTS, Plugins, normal_name

LONGEST_NAME, LONGEST_DESCRIPTION = 60, 500
"""What package indexes and file names bear, in characters."""
KINDS = (
    "tuner",
    "aligner",
    "inferencer",
    "model",
    "data-format",
    "reward",
    "evaluator",
    "tracker",
    "context",
    "attention",
    "optimizer",
    "schedule",
    "exporter",
    "command",
    "listener",
)
"""What there are templates for: every slot, commands, and what listens to runs."""
WORDS = ("none", "null", "true", "false", "yes", "no", "on", "off", "lmflow", "src", "test", "tests")
"""Names that YAML, an empty slot, lmflow itself or the layout of a project have a meaning for."""
SPELLINGS = {"data": "data-format"}


def make_plugin(
    kind: str, name: str, output: Path, plugins: Plugins, *, author: str = "", description: str = ""
) -> Path:
    """Write a distribution that adds a component of this kind into a directory of its name in `output`; returns that.

    Raises RecipeError for a kind that there is none of and a name that cannot be used, RunDirectoryError for a
    directory that exists.
    """
    kind = known_kind(kind)
    name = usable_name(name, kind, plugins)
    if (output / name).exists():
        raise RunDirectoryError(f"{output / name} exists; name another plugin, or another directory with --output")
    texts = {"author": printable(author), "description": printable(description)}
    for option, text in texts.items():
        if len(text) > LONGEST_DESCRIPTION:
            raise RecipeError([f"--{option}: has {len(text)} characters; use at most {LONGEST_DESCRIPTION}"])
    answers = {"kind": kind, "name": name} | {option: literal(text) for option, text in texts.items() if text}
    return fill_in(answers, output)


def printable(text: str) -> str:
    """Text in one line, without control characters, which TOML and Python source do not bear."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def literal(text: str) -> str:
    """A Jinja expression for exactly this text: cookiecutter renders each answer, and braces would mean something."""
    escaped = "".join(each if each.isalnum() and each.isascii() else f"\\U{ord(each):08x}" for each in text)
    return f'{{{{ "{escaped}" }}}}'


def known_kind(kind: str) -> str:
    """The template's word for a kind. Raises RecipeError, with the nearest, for what is none."""
    found = kind.lower().replace("_", "-")
    found = SPELLINGS.get(found, found)
    if found in KINDS:
        return found
    near = difflib.get_close_matches(found, KINDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
    raise RecipeError([f"there is no template for a plugin of kind {kind}; {hint}"])


def usable_name(name: str, kind: str, plugins: Plugins) -> str:
    """`name` as package indexes write it, which names the distribution, its package and the component alike.

    Raises RecipeError, with another name, where it cannot name one of these or belongs to something installed.
    """
    normal = normal_name(name.strip().replace(" ", "-"))
    if not is_usable(normal):
        why = f" (longer than {LONGEST_NAME} characters)" if len(normal) > LONGEST_NAME else ""
        raise RecipeError([f"{name!r} cannot name a plugin and its Python package{why}; try {suggestion(name, kind)}"])
    owner = owner_of(normal, "data" if kind == "data-format" else kind, plugins)
    if owner:
        raise RecipeError([f"{normal} is taken by {owner}, which is installed; try {suggestion(f'my-{normal}', kind)}"])
    return normal


def is_usable(name: str) -> bool:
    """Whether a normalised name can be a package that hides nothing of Python's and means nothing else to lmflow.

    The template's hook asks the same of those who call cookiecutter themselves.
    """
    reserved = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, *SLOTS, *KINDS, *WORDS}
    names = {name, component_name(name)}
    written = all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", each) for each in names)
    packages = {each.replace("-", "_") for each in names}
    return written and len(name) <= LONGEST_NAME and not (names | packages) & reserved


def suggestion(name: str, kind: str) -> str:
    """A name that can be used, made from one that cannot."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[: LONGEST_NAME - len(kind) - 1].rstrip("-")
    begun = f"my-{words}" if words[:1].isdigit() else words  # a package cannot begin with a digit
    return next(each for each in (begun, f"{words}-{kind}", f"my-{kind}") if is_usable(each))


def owner_of(name: str, slot: str, plugins: Plugins) -> str | None:
    """The installed distribution with that name, with a package of that name, or with such a component in `slot`."""
    owners = [offer.distribution for offer in plugins.offers(slot).get(component_name(name), ())]
    if slot == "command":
        owners += [home for command, home in plugins.commands if command.name == component_name(name)]
    package = name.replace("-", "_")
    owners += packages_distributions().get(package, [])
    with contextlib.suppress(PackageNotFoundError):
        owners.append(distribution(name).name)
    if find_spec(package) is not None:
        owners.append(f"the module {package}")
    return owners[0] if owners else None


def fill_in(answers: dict[str, str], output: Path) -> Path:
    """Do what `cookiecutter templates/plugin` does, asking nothing; returns the directory made in `output`.

    It is made beside its place and then moved there, so that it is whole or absent. Cookiecutter's own records go
    with the rest of that directory, and its configuration in the home directory is not read.
    """
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.main import cookiecutter
    from jinja2 import TemplateError

    try:
        output.mkdir(parents=True, exist_ok=True)
        with (
            scratch_directory(output / "new") as place,
            as_file(files("lmflow") / "templates") as source,
        ):
            scratch = str(place)
            made = cookiecutter(
                str(source / "plugin"),
                no_input=True,
                extra_context=answers,
                output_dir=scratch,
                default_config={"replay_dir": scratch, "cookiecutters_dir": scratch},
            )
            target = output / Path(made).name
            move_into_place(Path(made), target)
            return target
    except OSError as error:
        raise LmflowError(f"{output}: cannot be written: {error.strerror or error}") from error
    except (CookiecutterException, TemplateError) as error:
        raise LmflowError(f"the template could not be filled in: {error}") from error


def component_name(name: str) -> str:
    """What chooses the component of the distribution of that name."""
    return name.removeprefix("lmflow-")


def next_commands(directory: Path, kind: str) -> Sequence[str]:
    """What to type next, where `lmflow new` was typed: install, try, test."""
    name = component_name(directory.name)
    tried = {
        "data-format": f"lmflow run --data {name}",
        "tracker": f"lmflow run --trackers {name}",
        "evaluator": f"lmflow eval --model demo --evaluator {name}",
        "exporter": f"lmflow export {name} RUN --output DIR",
        "command": f"lmflow {name} --help",
        "listener": "lmflow run --training.max_steps 5",
    }
    return [
        f"pip install -e {shlex.quote(f'{directory}[test]')}",
        tried.get(kind, f"lmflow run --{kind} {name}"),
        f"pytest {shlex.quote(str(directory))}",
    ]
