"""What type an option may have, so that the command line, YAML, a dumped recipe and its JSON schema all hold it."""

from __future__ import annotations

import enum
import pathlib
import types
from collections.abc import Iterator
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

SCALARS = (str, int, float, bool, pathlib.Path)
INSTEAD = {
    "set": "list",
    "frozenset": "list",
    "list": "list[str]",
    "tuple": "tuple[str, ...]",
    "dict": "dict[str, str]",
    "bytes": "str",
    "Decimal": "float",
    "SecretStr": "str with the name of an environment variable that holds the secret",
    "Any": "the types it really takes, as int | str",
}
"""What to use for types that people reach for."""
SUPPORTED = "str, int, float, bool, Path, Literal, Enum, None, unions, lists, tuples, dict[str, …], or a model of these"


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone; what `Annotated` adds is left out."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for alternative in get_args(annotation) for each in members(alternative))
    return (annotation,)


def is_enum(kind: Any) -> bool:
    """Whether an annotation is an Enum."""
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def is_model(kind: Any) -> bool:
    """Whether an annotation is a model, whose fields are options within the option."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_list(kind: Any) -> bool:
    """Whether an annotation is a list or tuple."""
    return kind in (list, tuple) or get_origin(kind) in (list, tuple)


def is_mapping(kind: Any) -> bool:
    """Whether an annotation is a dict or a model: something with keys."""
    return kind is dict or get_origin(kind) is dict or is_model(kind)


def items(kind: Any, count: int) -> list[Any]:
    """The annotation of each of `count` items of a list or tuple; of a dict, that of its values."""
    arguments = get_args(kind) or (str,)
    if get_origin(kind) is dict:
        return [arguments[1]] * count
    if get_origin(kind) is tuple and Ellipsis not in arguments:
        return [*arguments, *[str] * count][:count]
    return [arguments[0]] * count


def is_plain(annotation: Any) -> bool:
    """Whether every alternative is written as one word: no list, no mapping."""
    return not any(is_list(kind) or is_mapping(kind) for kind in members(annotation))


def faults(field: FieldInfo, seen: tuple[Any, ...] = ()) -> Iterator[str]:
    """Why a field cannot be an option, and what to use instead; nothing for one that can."""
    yield from _annotation_faults(field.annotation, seen)
    if field.alias is not None or field.validation_alias is not None:
        yield "has an alias; an option is called as its field is"
    if field.exclude:
        yield "is excluded from the dump, so a resolved recipe would lose it; use a private attribute"
    if field.default is None and not field.is_required() and type(None) not in members(field.annotation):
        yield f"has the default None and the type {type_name(field.annotation)}; add | None"


def _annotation_faults(annotation: Any, seen: tuple[Any, ...] = ()) -> Iterator[str]:
    for kind in members(annotation):
        if kind in SCALARS or kind in (type(None), None):
            continue
        if get_origin(kind) is Literal:
            yield from _value_faults(kind, get_args(kind), (str, int, bool, type(None)))
        elif is_enum(kind):
            yield from _value_faults(kind, [member.value for member in kind], (str, int))
        elif is_model(kind):
            yield from () if kind in seen else _model_faults(kind, (*seen, kind))
        elif get_origin(kind) in (list, tuple, dict):
            yield from _container_faults(kind, seen)
        else:
            yield f"has the type {type_name(kind)}, which cannot be an option; use {_instead(kind)}"


def _value_faults(kind: Any, values: Any, allowed: tuple[type, ...]) -> Iterator[str]:
    """What is wrong with the values to choose from: of other types, or two that are written alike."""
    if wrong := [value for value in values if isinstance(value, enum.Enum) or not isinstance(value, allowed)]:
        yield f"has the choice {wrong[0]!r} in {type_name(kind)}; choices are text or whole numbers"
    elif len({str(value).lower() for value in values}) < len(values):
        yield f"has choices in {type_name(kind)} that are written alike"


def _container_faults(kind: Any, seen: tuple[Any, ...]) -> Iterator[str]:
    arguments = [each for each in get_args(kind) if each not in (Ellipsis, ())]
    if get_origin(kind) is dict:
        if arguments[0] is not str:
            yield f"has the type {type_name(kind)}; use dict[str, {type_name(arguments[1])}]: keys are text"
        arguments = arguments[1:]
    for each in arguments:
        yield from _annotation_faults(each, seen)


def _model_faults(kind: type[BaseModel], seen: tuple[Any, ...]) -> Iterator[str]:
    if kind.model_config.get("extra") != "forbid":
        yield (
            f'has the model {kind.__name__}, which takes unknown keys in silence; give it model_config = {{"extra": '
            '"forbid"}'
        )
    if kind.model_computed_fields:
        yield f"has the model {kind.__name__} with computed fields, which a recipe cannot set; use a property"
    for key, field in kind.model_fields.items():
        for fault in faults(field, seen):
            yield f"has the model {kind.__name__}, whose field {key} {fault}"


def _instead(kind: Any) -> str:
    if isinstance(kind, str | ForwardRef | TypeVar):
        return "a type that is imported where the class is defined, not under TYPE_CHECKING"
    origin = get_origin(kind) or kind
    return INSTEAD.get(getattr(origin, "__name__", str(origin)), SUPPORTED)


def type_name(annotation: Any) -> str:
    """An annotation as its author wrote it, near enough."""
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("pathlib.", "")
