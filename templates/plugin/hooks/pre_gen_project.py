"""Refuse a name that cannot be a distribution, a package and a component."""

import keyword
import re
import sys

NAME = r""" {{ cookiecutter.name }} """[1:-1]
SLOTS = {"model", "context", "data", "tuner", "aligner", "inferencer", "reward", "evaluator", "tracker"}
RESERVED = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, *SLOTS, "data-format", "none", "null"}

if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", NAME) or {NAME, NAME.replace("-", "_")} & RESERVED:
    sys.exit(
        f"{NAME!r} cannot name a plugin and its Python package: use small letters, digits and hyphens, as in my-tuner, "
        "and no word that Python or lmflow has a meaning for"
    )
