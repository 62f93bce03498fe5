"""Values as users write them: option texts into Python, validation errors into plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from lmflow.errors import RecipeError
from lmflow.plugins.option_types import is_enum, is_list, is_mapping, is_model, is_plain, items, members

Options = TypeVar("Options", bound=BaseModel)
NOTHING = ("none", "null")
"""Words for None."""


def parse_option(text: str, field: FieldInfo) -> Any:
    """What an option's text means for a field; pydantic checks the result.

    `none` is None where the field allows it; `[a, b]` and `{"a": 1}`, as JSON or YAML, are lists and mappings where the
    field takes them; `a,b` is a list and `a=1,b=2` a mapping unless the field takes text too; anything else is a word.
    """
    kinds = members(field.annotation)
    containers = [kind for kind in kinds if is_list(kind) or is_mapping(kind)]
    if not containers:
        return parse_word(text, kinds)
    if text.strip()[:1] in ("[", "{"):
        found = parse_structure(text.strip())
        return text if found is None else found
    if type(None) in kinds and text.lower() in NOTHING:
        return None
    if str in kinds:
        return text
    if is_list(containers[0]):
        return parse_list(text, containers[0])
    return parse_pairs(text, containers[0])


def parse_word(text: str, kinds: Sequence[Any]) -> Any:
    """One word, for a field that takes any of `kinds`: a choice, None, true or false, a number, or the text itself."""
    for kind in kinds:
        choices = (
            get_args(kind) if get_origin(kind) is Literal else [each.value for each in kind] if is_enum(kind) else ()
        )
        for choice in choices:
            if text == str(choice) or (isinstance(choice, bool) and text.lower() == str(choice).lower()):
                return choice
    if type(None) in kinds and text.lower() in NOTHING:
        return None
    if len([kind for kind in kinds if kind is not type(None)]) > 1:
        if bool in kinds and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if int in kinds and re.fullmatch(r"[-+]?\d+", text):
            return int(text)
        if float in kinds and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
            return float(text)
    return text


def parse_structure(text: str) -> Any:
    """JSON or YAML in brackets or braces; None for text that is neither."""
    import json

    with suppress(ValueError):
        return json.loads(text)
    import yaml

    from lmflow.recipe.yaml import Loader

    with suppress(yaml.YAMLError):
        found = yaml.load(text, Loader=Loader)
        return found if isinstance(found, list | dict) else None
    return None


def parse_list(text: str, kind: Any) -> Any:
    """`a,b` as a list; text that is no such list stays text, for pydantic to refuse."""
    words = [each.strip() for each in text.split(",") if each.strip()]
    wanted = items(kind, len(words))
    if not all(is_plain(each) for each in wanted):
        return text
    return [parse_word(word, members(each)) for word, each in zip(words, wanted, strict=True)]


def parse_pairs(text: str, kind: Any = dict) -> Any:
    """`a=1,b=2` as a mapping; text that is no such list stays text, for pydantic to refuse."""
    pairs = [each.rpartition("=") for each in text.split(",") if each.strip()]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        return text
    found = {}
    for key, _, value in pairs:
        field = kind.model_fields.get(key.strip()) if is_model(kind) else None
        wanted = field.annotation if field else str if is_model(kind) else items(kind, 1)[0]
        found[key.strip()] = parse_word(value.strip(), members(wanted))
    return found


def option_type(field: FieldInfo) -> str:
    """How the help names what a field takes."""
    return type_of(field.annotation)


def type_of(annotation: Any) -> str:
    """How the help names a type."""
    names: dict[Any, str] = {int: "INTEGER", float: "NUMBER", bool: "BOOLEAN", str: "TEXT", Path: "PATH"}
    shown: list[str] = []
    for kind in members(annotation):
        if get_origin(kind) is Literal:
            shown += [
                str(each).lower() if isinstance(each, bool) else str(each)
                for each in get_args(kind)
                if each is not None
            ]
        elif is_enum(kind):
            shown += [str(each.value) for each in kind]
        elif is_list(kind):
            shown.append("LIST" if all(map(is_plain, items(kind, max(len(get_args(kind)), 1)))) else "JSON")
        elif is_mapping(kind):
            values = [each.annotation for each in kind.model_fields.values()] if is_model(kind) else items(kind, 1)
            shown.append("KEY=VALUE,…" if all(map(is_plain, values)) else "JSON")
        elif kind is not type(None):
            shown.append(names.get(kind, "VALUE"))
    return "|".join(dict.fromkeys(shown))


def option_text(value: Any) -> str:
    """A value as it is written on the command line."""
    plain = to_jsonable_python(value)
    if plain is None or isinstance(plain, bool):
        return "none" if plain is None else str(plain).lower()
    nested = isinstance(plain, list | dict)
    inner = list(plain.values() if isinstance(plain, dict) else plain) if nested else []
    if nested and (not inner or any(isinstance(each, list | dict) or "," in str(each) for each in inner)):
        import json

        return json.dumps(plain, ensure_ascii=False)
    if isinstance(plain, dict):
        return ",".join(f"{key}={option_text(each)}" for key, each in plain.items())
    return ",".join(map(option_text, plain)) if isinstance(plain, list) else str(plain)


def may_stand_alone(field: FieldInfo) -> bool:
    """Whether `--option` alone means true, though it takes other values too."""
    return bool in members(field.annotation) and not is_flag(field)


def is_flag(field: FieldInfo) -> bool:
    """Whether `--option` alone means true."""
    return {*members(field.annotation)} - {type(None)} == {bool}


def validated(owner: type[Options], values: Mapping[str, Any], section: str) -> Options:
    """The options with these values. Raises RecipeError saying in plain words what is wrong with which."""
    try:
        return owner.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            [f"{section}.{'.'.join(map(str, each['loc'][:1]))}: {explain_error(each)}" for each in error.errors()]
        ) from None


def explain_errors(owner: type[BaseModel], errors: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The option and the plain words of each of pydantic's errors; one line for a union that takes none."""
    said: set[str] = set()
    for each in errors:
        key = str(each["loc"][0]) if each["loc"] else ""
        field = owner.model_fields.get(key)
        kinds = [kind for kind in members(field.annotation) if kind is not type(None)] if field else []
        if field is None or len(kinds) < 2:
            yield (
                key,
                "".join(_place(part) for part in each["loc"][1:]).lstrip(".") + _colon(each) + explain_error(each),
            )
            continue
        alike = [other for other in errors if other["loc"][:1] == each["loc"][:1]]
        informative = [other for other in alike if not _is_about_type(other)]
        if key not in said:
            said.add(key)
            got = alike[0]["input"] if len(alike[0]["loc"]) < 3 else "something else"
            yield (
                key,
                explain_error(informative[0]) if informative else f"expected {type_of(field.annotation)}, got {got!r}",
            )


def _place(part: str | int) -> str:
    """A step into a value, as it is written behind it."""
    return f"[{part}]" if isinstance(part, int) else f".{part}"


def _colon(error: Mapping[str, Any]) -> str:
    return ": " if len(error["loc"]) > 1 else ""


def _is_about_type(error: Mapping[str, Any]) -> bool:
    """Whether a value is of another type than was asked for, rather than out of bounds."""
    return str(error["type"]).endswith(("_type", "_parsing", "_from_float", "literal_error")) or error["type"] == "enum"


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
    if kind == "extra_forbidden":
        return "unknown key"
    if kind in ("literal_error", "enum"):
        return f"must be one of {context['expected']}, got {got!r}{_nearest(str(got), str(context['expected']))}"
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        if pattern.startswith("^(") and pattern.endswith(")$"):
            choices = pattern[2:-2].split("|")
            return f"must be one of {', '.join(choices)}, got {got!r}{_nearest(str(got), pattern)}"
        return f"must look like {pattern}, got {got!r}"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    named = _EXPECTED.items() if _is_about_type(error) else ()
    expected = next((words for start, words in named if kind.startswith(start)), None)
    return f"expected {expected}, got {got!r}" if expected else f"{error['msg']}, got {got!r}"


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "pairs like a=1,b=2",
    "model": "pairs like a=1,b=2",
    "path": "a path",
}


def _nearest(got: str, choices: str) -> str:
    near = difflib.get_close_matches(got, re.findall(r"[\w.-]+", choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""
