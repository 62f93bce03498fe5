"""Values as users write them: option texts into Python, validation errors into plain words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lmflow.errors import RecipeError

Options = TypeVar("Options", bound=BaseModel)


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for alternative in get_args(annotation) for each in members(alternative))
    return (annotation,)


def parse_option(text: str, field: FieldInfo) -> Any:
    """What an option's text means for a field; pydantic checks the result.

    `none` is None where the field allows it, `[a, b]` and (for fields that are only lists) `a,b` are lists, `a=1,b=2`
    is a mapping, a number is a number where the field takes numbers or text; anything else stays text.
    """
    kinds = members(field.annotation)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple) or kind in (list, tuple)]
    if lists and text.startswith("["):
        import yaml

        return yaml.safe_load(text)
    if lists and str not in kinds:
        return [each.strip() for each in text.split(",") if each.strip()]
    if any(get_origin(kind) is dict for kind in kinds):
        return parse_pairs(text)
    if float in kinds and str in kinds:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def parse_pairs(text: str) -> Any:
    """`a=1,b=2` as a mapping; text that is no such list stays text, for pydantic to refuse."""
    pairs = [each.rpartition("=") for each in text.split(",") if each.strip()]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        return text
    return {key.strip(): value.strip() for key, _, value in pairs}


def option_type(field: FieldInfo) -> str:
    """How the help names what a field takes."""
    names = {int: "INTEGER", float: "NUMBER", bool: "BOOLEAN", str: "TEXT"}
    shown = []
    for kind in members(field.annotation):
        if get_origin(kind) is Literal:
            shown.append("|".join(map(str, get_args(kind))))
        elif get_origin(kind) in (list, tuple):
            shown.append("LIST")
        elif get_origin(kind) is dict:
            shown.append("KEY=VALUE,…")
        elif kind is not type(None):
            shown.append(names.get(kind, "VALUE"))
    return "|".join(dict.fromkeys(shown))


def is_flag(field: FieldInfo) -> bool:
    """Whether `--option` alone means true."""
    return bool in members(field.annotation)


def validated(owner: type[Options], values: Mapping[str, Any], section: str) -> Options:
    """The options with these values. Raises RecipeError saying in plain words what is wrong with which."""
    try:
        return owner.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            [f"{section}.{'.'.join(map(str, each['loc'][:1]))}: {explain_error(each)}" for each in error.errors()]
        ) from None


def explain_error(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in plain words."""
    kind, context, got = error["type"], error.get("ctx", {}), error.get("input")
    bounds = {
        "greater_than": ("must be greater than", "gt"),
        "greater_than_equal": ("must be at least", "ge"),
        "less_than": ("must be less than", "lt"),
        "less_than_equal": ("must be at most", "le"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"{words} {context[key]}, got {got!r}"
    if kind == "missing":
        return "is required"
    if kind == "literal_error":
        return f"must be one of {context['expected']}, got {got!r}{_nearest(str(got), str(context['expected']))}"
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        if pattern.startswith("^(") and pattern.endswith(")$"):
            choices = pattern[2:-2].split("|")
            return f"must be one of {', '.join(choices)}, got {got!r}{_nearest(str(got), pattern)}"
        return f"must look like {pattern}, got {got!r}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    expected = next((words for start, words in _EXPECTED.items() if kind.startswith(start)), None)
    return f"expected {expected}, got {got!r}" if expected else f"{error['msg']}, got {got!r}"


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "pairs like a=1,b=2",
}


def _nearest(got: str, choices: str) -> str:
    import re

    near = difflib.get_close_matches(got, re.findall(r"[\w.-]+", choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""
