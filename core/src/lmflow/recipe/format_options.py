"""What the section `data` has beside its plain options: a format with its own, or options of one to be recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from lmflow.components import Component
from lmflow.errors import LmflowError
from lmflow.plugins import Plugins
from lmflow.recipe.building import build, unknown_key
from lmflow.recipe.choices import is_to_be_recognised
from lmflow.recipe.settings import DATA, Origin, Setting, of_section


def format_parts(
    chosen: Component | None,
    settings: Mapping[str, Setting],
    plain: type[BaseModel],
    plugins: Plugins,
    origins: dict[str, Origin],
    problems: list[str],
) -> dict[str, Any]:
    """The format and, where it is to be recognised (None), the options it will be given, as plain values."""
    if chosen is not None or not is_to_be_recognised(settings):
        return {"format": chosen, "format_options": {}}
    given = {key: each for key, each in of_section(settings, DATA) if key not in ("name", *plain.model_fields)}
    origins |= {f"{DATA}.{key}": each.origin for key, each in of_section(settings, DATA)}
    return {"format": None, "format_options": _values(given, plain, plugins, problems)}


def _values(
    given: Mapping[str, Setting], plain: type[BaseModel], plugins: Plugins, problems: list[str]
) -> dict[str, Any]:
    """The options' values as the formats that have them read them.

    What no installed format has becomes a problem, and so does what none takes as it is, or two read otherwise.
    """
    formats: list[type[Component]] = plugins.classes(DATA)
    fields = {key: field for each in formats for key, field in each.model_fields.items()}
    unknown = [key for key in given if key not in fields]
    for key in unknown:
        problems.append(f"{given[key].place}: {unknown_key(key, DATA, {**plain.model_fields, **fields}, plugins)}")
    if not given or unknown:
        return {}
    mistakes: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    for each in formats:
        if given.keys() <= each.model_fields.keys():
            values = _as_read_by(each, given, plugins, mistakes)
            found |= {} if values is None else {each.name: values}
    readings = list(found.values())
    if readings and all(each == readings[0] for each in readings):
        return readings[0]
    places = ", ".join(each.place for each in given.values())
    if readings:
        problems.append(f"{places}: means other things to {' and '.join(found)}; name one of them with --{DATA} NAME")
    else:
        problems += dict.fromkeys(mistakes) or [f"{places}: no format has all of these options"]
    return {}


def _as_read_by(
    component: type[Component], given: Mapping[str, Setting], plugins: Plugins, mistakes: list[str]
) -> dict[str, Any] | None:
    """The options' values in this format, as they are dumped; None where it does not take them."""
    try:
        built = build(DATA, component, given, {}, mistakes, plugins.describe_owner(DATA, component))
    except LmflowError as error:  # one that fails at checking them is no harm where another has them too
        mistakes.append(str(error))
        return None
    dumped = built.model_dump(mode="json") if built else {}
    return {key: dumped[key] for key in given} if built else None
