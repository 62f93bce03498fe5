"""What a component has to declare, checked when its plugin is loaded: a plugin that breaks a rule is left out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from lmflow.components import Component, Conflict, Need, Requirement
from lmflow.errors import PluginError
from lmflow.plugins.option_types import faults

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
RESERVED = ("none", "null", "true", "false", "yes", "no", "on", "off")
"""Names that YAML or an empty slot have a meaning for."""


def check_component(slot: str, base: type[Component], component: type[Component], slots: Collection[str]) -> None:
    """Raise PluginError, with every rule that a component for `slot` breaks."""
    if found := list(_broken_rules(base, component, slots)):
        name = getattr(component, "name", component.__name__)
        raise PluginError(f"{slot} {name}: {'; '.join(found)}")


def _broken_rules(base: type[Component], component: type[Component], slots: Collection[str]) -> Iterator[str]:
    name = getattr(component, "name", None)
    if "name" in component.model_fields:
        yield 'name is declared as an option; write name = "…" without a type'
    elif not isinstance(name, str):
        yield 'it has no name; write name = "…" in the class'
    elif not NAME.fullmatch(name) or name in RESERVED:
        yield f"{name!r} cannot be a name; use small letters, digits and dashes, as in my-{component.__name__.lower()}"
    own = component.__mro__[: component.__mro__.index(base)]
    if not any((each.__doc__ or "").strip() for each in own):
        yield "it has no docstring, whose first line is its help"
    yield from _option_faults(base, component)
    yield from _declaration_faults(component, slots)


def _option_faults(base: type[Component], component: type[Component]) -> Iterator[str]:
    if not component.__pydantic_fields_complete__:
        component.model_rebuild(raise_errors=False)
    for key, field in component.model_fields.items():
        inherited = base.model_fields.get(key)
        if key == "name":
            continue
        if key in getattr(base, "reserved", ()):
            yield f"option {key} is one that the section has for all formats; give it another name"
        if inherited is None and hasattr(base, key):
            yield f"option {key} hides {base.__name__}.{key}; give it another name"
        if not (field.description or "").strip():
            yield f"option {key} has no description; write Field(…, description=…)"
        if inherited is None or inherited.annotation != field.annotation:
            yield from (f"option {key} {fault}" for fault in faults(field))
    if component.model_computed_fields:
        yield f"{', '.join(component.model_computed_fields)} is a computed field; use a property"


def _declaration_faults(component: type[Component], slots: Collection[str]) -> Iterator[str]:
    if component.shorthand is not None and component.shorthand not in component.model_fields:
        yield f"shorthand {component.shorthand!r} is no option of it"
    for declared, kind in (("needs", Need), ("conflicts", Conflict), ("requires", Requirement)):
        values: Any = getattr(component, declared)
        if not isinstance(values, tuple | list) or not all(isinstance(each, kind) for each in values):
            yield f"{declared} has to be a tuple of {kind.__name__}; of one it is ({kind.__name__}(…),)"
            continue
        for each in values:
            yield from _reference_faults(declared, each, slots)


def _reference_faults(declared: str, each: Need | Conflict | Requirement, slots: Collection[str]) -> Iterator[str]:
    if isinstance(each, Requirement):
        if not all(part.isidentifier() for part in each.module.split(".")):
            yield f"requires names {each.module!r}, which is no module"
    elif each.slot not in slots:
        yield f"{declared} names {each.slot!r}, which is no slot; there are {', '.join(slots)}"
    elif isinstance(each.names, str):
        yield f'{declared} has the names {each.names!r}; of one it is ("{each.names}",)'
