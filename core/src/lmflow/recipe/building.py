"""A section of settings as the object that holds them, checked by its class; mistakes in plain words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmflow.plugins import RECIPE_SLOTS, Plugins
from lmflow.plugins.faults import blaming, failing_options
from lmflow.recipe.settings import PLAIN, Origin, Setting
from lmflow.recipe.values import explain_errors, option_type, parse_option


def build(
    section: str,
    owner: type[BaseModel],
    given: Mapping[str, Setting],
    origins: dict[str, Origin],
    problems: list[str],
    who: str = "",
) -> BaseModel | None:
    """The section's validated options; what is wrong with them becomes problems.

    Raises PluginError where `who`, the component, cannot check them itself.
    """
    values = {}
    for key, setting in given.items():
        as_text = setting.origin.kind == "option" and isinstance(setting.value, str)
        values[key] = parse_option(setting.value, owner.model_fields[key]) if as_text else setting.value
    for key in owner.model_fields:
        origins[f"{section}.{key}"] = given[key].origin if key in given else Origin("default")
    try:
        with blaming(who or section, lambda error: _checked(section, owner, given, error)):
            return owner.model_validate(values)
    except ValidationError as error:
        for key, said in explain_errors(owner, error.errors()):
            place = given[key].place if key in given else f"{section}.{key}".rstrip(".")
            line = f"{place}: {said}"
            if line not in problems:
                problems.append(line)
        return None


def _checked(section: str, owner: type[BaseModel], given: Mapping[str, Setting], error: BaseException) -> str:
    """Which options a component was checking when it failed: those the traceback tells of, or all that were given."""
    keys = failing_options(owner, error) or list(given)
    options = ", ".join(given[key].place if key in given else f"{section}.{key}" for key in keys)
    return f"checking {options}" if options else "making it with its defaults"


def unknown_key(key: str, section: str, fields: Mapping[str, FieldInfo], plugins: Plugins) -> str:
    """What to say of an option that is not among `fields`: the nearest one, or whose option it is."""
    whole = key.partition(".")[0]
    if whole != key and whole in fields:
        return f"unknown option; {section}.{whole} is set as a whole: {option_type(fields[whole])}"
    if section in PLAIN and key in PLAIN[section].model_fields:
        return f"unknown option; {section}.{key} is one of training runs (lmflow run)"
    near = difflib.get_close_matches(key, fields, n=1)
    if near:
        return f"unknown option; did you mean {section}.{near[0]}?"
    for slot in RECIPE_SLOTS:
        for name, offers in plugins.offers(slot).items():
            if key in offers[0].component.model_fields:
                same = slot == section
                return f"unknown option; {slot}.{key} is an option of {slot} {name}" + (", not chosen" if same else "")
    for name, owner in PLAIN.items():
        if key in owner.model_fields:
            return f"unknown option; did you mean {name}.{key}?"
    return f"unknown option; there are {', '.join(fields) or 'none'}"
