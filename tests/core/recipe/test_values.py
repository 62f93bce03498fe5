"""Values as users write them, and what is said of those that do not fit."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lmflow.errors import RecipeError
from lmflow.recipe.values import (
    explain_error,
    explain_errors,
    option_text,
    option_type,
    parse_list,
    parse_option,
    parse_pairs,
    parse_structure,
    parse_word,
    validated,
)


class Colour(Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """A section within a section."""

    rank: int = 1
    name: str = ""


class Options(BaseModel):
    """One of each kind."""

    model_config = ConfigDict(extra="forbid")

    whole: int = Field(1, gt=0, le=10)
    number: float = Field(0.5, ge=0, lt=1)
    maybe: float | None = None
    flag: bool = False
    word: str = ""
    place: Path = Path()
    choice: Literal["cosine", "linear", "constant"] = "cosine"
    tri: Literal[True, False, "auto"] = "auto"
    colour: Colour = Colour.RED
    names: list[str] = []
    counts: list[int] | None = None
    pairs: dict[str, float] = {}
    either: str | list[str] = ""
    share: int | float = 0
    inner: Inner = Inner()
    pattern: str = Field("cpu", pattern="^(cpu|cuda|auto)$")
    code: str = Field("a1", pattern="^[a-z][0-9]$")
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even, got {value}")
        return value


def parsed(field: str, text: str) -> Any:
    """What an option's text becomes, checked by pydantic."""
    value = parse_option(text, Options.model_fields[field])
    return getattr(Options.model_validate({field: value}), field)


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("whole", "3", 3),
        ("number", "1e-4", 1e-4),
        ("maybe", "none", None),
        ("maybe", "NULL", None),
        ("maybe", "0.25", 0.25),
        ("flag", "true", True),
        ("flag", "False", False),
        ("word", "none", "none"),
        ("word", "2024", "2024"),
        ("place", "runs/a", Path("runs/a")),
        ("choice", "linear", "linear"),
        ("tri", "TRUE", True),
        ("tri", "auto", "auto"),
        ("colour", "blue", Colour.BLUE),
        ("names", "a, b,", ["a", "b"]),
        ("names", "[a, b]", ["a", "b"]),
        ("names", '["a,b"]', ["a,b"]),
        ("counts", "1,2", [1, 2]),
        ("counts", "none", None),
        ("pairs", "a=1,b=2.5", {"a": 1.0, "b": 2.5}),
        ("pairs", "{a: 1}", {"a": 1.0}),
        ("pairs", "x=y=1", {"x=y": 1.0}),
        ("either", "a,b", "a,b"),
        ("either", "[a, b]", ["a", "b"]),
        ("share", "3", 3),
        ("share", "0.5", 0.5),
        ("share", ".5e1", 5.0),
        ("inner", "rank=4,name=x", Inner(rank=4, name="x")),
        ("inner", '{"rank": 4}', Inner(rank=4)),
    ],
)
def test_option_texts(field: str, text: str, expected: Any):
    found = parsed(field, text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("field", ["whole", "number", "flag", "choice", "counts", "pairs", "inner"])
def test_what_does_not_fit_stays_for_pydantic_to_refuse(field: str):
    with pytest.raises(ValidationError):
        parsed(field, "nonsense!")


def test_words_are_read_by_the_kinds_a_field_takes():
    assert parse_word("true", [bool, str]) is True
    assert parse_word("true", [str]) == "true"
    assert parse_word("7", [int, str]) == 7
    assert parse_word("7", [str]) == "7"
    assert parse_word("-1.5e3", [float, str]) == -1500.0
    assert parse_word("1.2.3", [float, str]) == "1.2.3"
    assert parse_word("none", [str]) == "none"


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"a": [1]}', {"a": [1]}), ("[a, 1e-4]", ["a", 1e-4]), ("[on]", ["on"]), ("[a", None), ("{", None), ("3", 3)],
)
def test_structures_are_json_or_yaml(text: str, expected: Any):
    assert parse_structure(text) == expected


def test_lists_and_pairs_that_are_none_stay_text():
    assert parse_list("a,b", list[dict[str, int]]) == "a,b"
    assert parse_pairs("a,b=1", dict[str, int]) == "a,b=1"
    assert parse_pairs("=1") == "=1"
    assert parse_list("1,x", tuple[int, str]) == ["1", "x"]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("whole", "INTEGER"),
        ("maybe", "NUMBER"),
        ("flag", "BOOLEAN"),
        ("place", "PATH"),
        ("choice", "cosine|linear|constant"),
        ("tri", "true|false|auto"),
        ("colour", "red|blue"),
        ("names", "LIST"),
        ("pairs", "KEY=VALUE,…"),
        ("either", "TEXT|LIST"),
        ("share", "INTEGER|NUMBER"),
        ("inner", "KEY=VALUE,…"),
    ],
)
def test_how_the_help_names_a_type(field: str, expected: str):
    assert option_type(Options.model_fields[field]) == expected


def test_nested_lists_are_json():
    class Nested(BaseModel):
        rows: list[list[int]] = []
        parts: dict[str, list[int]] = {}

    assert [option_type(field) for field in Nested.model_fields.values()] == ["JSON", "JSON"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (3, "3"),
        (0.0001, "0.0001"),
        ("word", "word"),
        (Path("a/b"), "a/b"),
        (["a", "b"], "a,b"),
        ([], "[]"),
        (["a,b"], '["a,b"]'),
        ({"a": 1}, "a=1"),
        ({}, "{}"),
        ([[1], [2]], "[[1], [2]]"),
    ],
)
def test_values_as_they_are_written_on_the_command_line(value: Any, text: str):
    assert option_text(value) == text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("whole", 7),
        ("maybe", None),
        ("flag", True),
        ("names", ["a", "b"]),
        ("names", []),
        ("names", ["a,b", "c"]),
        ("pairs", {"a": 1.5}),
        ("pairs", {}),
        ("counts", [1, 2]),
        ("either", ["x", "y,z"]),
        ("tri", False),
    ],
)
def test_what_is_written_is_read_back(field: str, value: Any):
    assert parsed(field, option_text(value)) == value


def said(**values: Any) -> list[tuple[str, str]]:
    """What is said of values that pydantic refuses."""
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(values)
    return list(explain_errors(Options, caught.value.errors()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"whole": 0}, ("whole", "must be greater than 0, got 0")),
        ({"whole": 11}, ("whole", "must be at most 10, got 11")),
        ({"number": -1}, ("number", "must be at least 0.0, got -1")),
        ({"number": 1}, ("number", "must be less than 1.0, got 1")),
        ({"whole": "x"}, ("whole", "expected a whole number, got 'x'")),
        ({"whole": 1.5}, ("whole", "expected a whole number, got 1.5")),
        ({"number": "fast"}, ("number", "expected a number, got 'fast'")),
        ({"flag": "perhaps"}, ("flag", "expected true or false, got 'perhaps'")),
        ({"word": 3}, ("word", "expected text, got 3")),
        ({"names": "a"}, ("names", "expected a list, got 'a'")),
        ({"pairs": "a"}, ("pairs", "expected pairs like a=1,b=2, got 'a'")),
        ({"maybe": "x"}, ("maybe", "expected a number, got 'x'")),
        (
            {"choice": "liner"},
            ("choice", "must be one of 'cosine', 'linear' or 'constant', got 'liner'; did you mean linear?"),
        ),
        ({"colour": "rde"}, ("colour", "must be one of 'red' or 'blue', got 'rde'; did you mean red?")),
        ({"pattern": "cudda"}, ("pattern", "must be one of cpu, cuda, auto, got 'cudda'; did you mean cuda?")),
        ({"code": "??"}, ("code", "must look like ^[a-z][0-9]$, got '??'")),
        ({"even": 3}, ("even", "must be even, got 3")),
        ({"nothing": 3}, ("nothing", "unknown key")),
        ({"counts": [1, "x"]}, ("counts", "expected LIST, got [1, 'x']")),
        ({"inner": {"rank": "x"}}, ("inner", "rank: expected a whole number, got 'x'")),
    ],
    ids=lambda each: str(each) if isinstance(each, dict) else "",
)
def test_mistakes_in_plain_words(values: dict[str, Any], expected: tuple[str, str]):
    [(key, words)] = said(**values)
    assert key == expected[0]
    if values == {"counts": [1, "x"]}:
        assert "expected" in words
    else:
        assert words == expected[1]


def test_a_place_within_a_list_is_named():
    [(key, words)] = said(names=["a", 3])
    assert (key, words) == ("names", "[1]: expected text, got 3")


def test_one_line_for_a_union_that_takes_none():
    assert said(either=3.5) == [("either", "expected TEXT|LIST, got 3.5")]
    assert len(said(share="x")) == 1


def test_what_is_missing_is_required():
    class Needed(BaseModel):
        path: str

    with pytest.raises(ValidationError) as caught:
        Needed.model_validate({})
    assert list(explain_errors(Needed, caught.value.errors())) == [("path", "is required")]  # type: ignore[arg-type]


def test_an_error_nobody_knows_has_pydantic_s_words():
    error = {"type": "odd_kind", "msg": "Input is odd", "input": 3, "loc": ("x",)}
    assert explain_error(error) == "Input is odd, got 3"


def test_values_checked_outside_of_a_recipe_name_the_section():
    assert validated(Options, {"whole": 3}, "sampling").whole == 3
    with pytest.raises(RecipeError) as caught:
        validated(Options, {"whole": 0, "nothing": 1}, "sampling")
    assert caught.value.problems == [
        "sampling.whole: must be greater than 0, got 0",
        "sampling.nothing: unknown key",
    ]


def test_annotated_kinds_are_seen_through():
    class Annotations(BaseModel):
        size: Annotated[int, Field(gt=0)] = 1

    assert option_type(Annotations.model_fields["size"]) == "INTEGER"
    assert parse_option("4", Annotations.model_fields["size"]) == "4"
