"""Refuse a name that cannot be a distribution, a package and a component."""

import keyword
import re
import sys

NAME = r""" {{ cookiecutter.name }} """[1:-1]
SLOTS = {"model", "context", "attention", "data", "tuner", "optimizer", "schedule", "aligner", "inferencer", "reward"}
WORDS = {"none", "null", "true", "false", "yes", "no", "on", "off", "lmflow", "src", "test", "tests", "data-format"}
OTHERS = {"evaluator", "exporter", "tracker", "command", "listener"}
RESERVED = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, *SLOTS, *OTHERS, *WORDS}
NAMES = {NAME, NAME.removeprefix("lmflow-")}  # the distribution's, and the component's
FORM = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

if (
    len(NAME) > 60
    or not all(FORM.fullmatch(each) for each in NAMES)
    or {*NAMES, *(each.replace("-", "_") for each in NAMES)} & RESERVED
):
    sys.exit(
        f"{NAME!r} cannot name a plugin and its Python package: use at most 60 small letters, digits and hyphens, as "
        "in my-tuner, and no word that Python or lmflow has a meaning for"
    )
