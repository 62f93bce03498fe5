"""Every type an option may have: command line, YAML, dump and back, help, JSON schema; and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmflow.plugins import Plugins, load_plugins
from lmflow.recipe.recipe import dump
from lmflow.recipe.resolve import resolve
from lmflow.recipe.schema import schema
from lmflow.recipe.settings import Origin, Setting

SOURCE = """
from __future__ import annotations
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, Optional, Union
from pydantic import BaseModel, ConfigDict, Field
from lmflow.components import Tracker, Tuner
from lmflow.hookspecs import hookimpl

LMFLOW_INTERFACE = 2

class Kind(Enum):
    SOFT = "soft"
    HARD = "hard"

class Level(int, Enum):
    LOW = 1
    HIGH = 2

class Head(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = 4
    kind: Kind = Kind.SOFT

class Block(BaseModel):
    model_config = ConfigDict(extra="forbid")
    heads: list[Head] = []
    deeper: Optional["Block"] = None

def option(default, **more): return Field(default, description="What it is.", **more)

class Every(Tuner):
    "Have every type of option."
    name = "every"
    whole: int = option(1, gt=0)
    real: float = option(0.5)
    text: str = option("a")
    yes: bool = option(False)
    maybe: bool | None = option(None)
    path: Path = option(Path("x/y"))
    no_path: Optional[Path] = option(None)
    choice: Literal["a", "b"] = option("a")
    numbered: Literal[1, 2, "auto"] = option("auto")
    switch: Literal[True, False, "auto"] = option("auto")
    kind: Kind = option(Kind.SOFT)
    level: Level | None = option(None)
    number_or_text: Union[int, str] = option("all")
    flag_or_text: bool | str = option("auto")
    names: list[str] = option(["p", "q"])
    sizes: tuple[int, ...] = option((1, 2))
    pair: tuple[float, bool] = option((0.9, True))
    kinds: list[Kind] = Field(default_factory=lambda: [Kind.HARD], description="What they are.")
    matrix: list[list[int]] = option([])
    names_or_text: list[str] | str | None = option(None)
    rates: dict[str, float] = option({})
    lists: dict[str, list[int]] = option({})
    head: Head = option(Head())
    no_head: Head | None = option(None)
    heads: list[Head] = option([])
    block: Block = option(Block())
    annotated: Annotated[list[Annotated[int, Field(gt=0)]], Field(max_length=3)] = option([1])
    def prepare(self, model): return model

class Note(Tracker):
    "Keep a note."
    name = "note"
    head: Head = option(Head())

@hookimpl
def lmflow_tuners(): return [Every]

@hookimpl
def lmflow_trackers(): return [Note]
"""
HEAD = {"width": 8, "kind": "hard"}
CASES: list[tuple[str, str, Any, str]] = [
    ("whole", "7", 7, "INTEGER"),
    ("real", "1e-4", 1e-4, "NUMBER"),
    ("text", "1e5", "1e5", "TEXT"),
    ("text", "on", "on", "TEXT"),
    ("text", "[a", "[a", "TEXT"),
    ("yes", "true", True, "BOOLEAN"),
    ("maybe", "false", False, "BOOLEAN"),
    ("maybe", "none", None, "BOOLEAN"),
    ("path", "/a b/c", "/a b/c", "PATH"),
    ("no_path", "none", None, "PATH"),
    ("no_path", "z", "z", "PATH"),
    ("choice", "b", "b", "a|b"),
    ("numbered", "2", 2, "1|2|auto"),
    ("numbered", "auto", "auto", "1|2|auto"),
    ("switch", "True", True, "true|false|auto"),
    ("kind", "hard", "hard", "soft|hard"),
    ("level", "2", 2, "1|2"),
    ("level", "none", None, "1|2"),
    ("number_or_text", "5", 5, "INTEGER|TEXT"),
    ("number_or_text", "five", "five", "INTEGER|TEXT"),
    ("number_or_text", "1_000", "1_000", "INTEGER|TEXT"),
    ("number_or_text", "nan", "nan", "INTEGER|TEXT"),
    ("flag_or_text", "true", True, "BOOLEAN|TEXT"),
    ("flag_or_text", "new", "new", "BOOLEAN|TEXT"),
    ("names", "a,b", ["a", "b"], "LIST"),
    ("names", '["a, b", "c"]', ["a, b", "c"], "LIST"),
    ("names", "[a, b]", ["a", "b"], "LIST"),
    ("sizes", "4,5,6", [4, 5, 6], "LIST"),
    ("pair", "0.5,false", [0.5, False], "LIST"),
    ("kinds", "soft,hard", ["soft", "hard"], "LIST"),
    ("matrix", "[[1,2],[3]]", [[1, 2], [3]], "JSON"),
    ("names_or_text", "[a]", ["a"], "LIST|TEXT"),
    ("names_or_text", "a,b", "a,b", "LIST|TEXT"),
    ("names_or_text", "none", None, "LIST|TEXT"),
    ("rates", "a=1,b=0.5", {"a": 1.0, "b": 0.5}, "KEY=VALUE,…"),
    ("rates", '{"a":1}', {"a": 1.0}, "KEY=VALUE,…"),
    ("lists", '{"a": [1]}', {"a": [1]}, "JSON"),
    ("head", "width=8,kind=hard", HEAD, "KEY=VALUE,…"),
    ("head", '{"width": 8, "kind": "hard"}', HEAD, "KEY=VALUE,…"),
    ("head", "{width: 8, kind: hard}", HEAD, "KEY=VALUE,…"),
    ("no_head", "none", None, "KEY=VALUE,…"),
    ("no_head", "width=8,kind=hard", HEAD, "KEY=VALUE,…"),
    ("heads", '[{"width": 8, "kind": "hard"}]', [HEAD], "JSON"),
    (
        "block",
        '{"heads": [], "deeper": {"heads": [], "deeper": null}}',
        {"heads": [], "deeper": {"heads": [], "deeper": None}},
        "JSON",
    ),
    ("annotated", "1,2", [1, 2], "LIST"),
]


@pytest.fixture
def plugins(install_distribution) -> Plugins:
    install_distribution("acme-every", SOURCE)
    plugins = load_plugins()
    assert plugins.broken == []
    return plugins


def options(**values: str) -> list[Setting]:
    named = {"tuner": "every", **{f"tuner.{key}": value for key, value in values.items()}}
    return [Setting(path, value, Origin("option", f"--{path}")) for path, value in named.items()]


def test_every_type_from_options_through_yaml_and_back(plugins, tmp_path):
    for key, text, value, _ in CASES:
        recipe = resolve(plugins, None, options(**{key: text})).recipe
        dumped = dump(recipe)
        assert yaml.safe_load(dumped)["tuner"][key] == value, (key, text)
        (tmp_path / "recipe.yaml").write_text(dumped)
        again = resolve(plugins, tmp_path / "recipe.yaml").recipe
        assert again == recipe, (key, text)
        assert dump(again) == dumped, (key, text)


def test_every_type_from_yaml(plugins, tmp_path):
    for key, _, value, _ in CASES:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"tuner": {"name": "every", key: value}}))
        if key == "text" and value == "1e5":
            continue  # PyYAML leaves it unquoted, which YAML 1.2 reads as a number
        recipe = resolve(plugins, tmp_path / "recipe.yaml").recipe
        assert recipe.tuner.model_dump(mode="json")[key] == value, key


def test_defaults_come_back_too(plugins, tmp_path):
    text = dump(resolve(plugins, None, options()).recipe)
    (tmp_path / "recipe.yaml").write_text(text)
    assert dump(resolve(plugins, tmp_path / "recipe.yaml").recipe) == text


def test_help_says_what_each_takes_and_its_default(plugins, lmflow):
    shown = " ".join(lmflow("run", "--tuner", "every", "--help").out.split())
    for key, _, _, kind in CASES:
        assert f"--tuner.{key} {kind} " in shown
    for default in ("p,q", "0.9,true", "hard", "width=4,kind=soft", "x/y"):
        assert f"[default: {default}]" in shown
    assert "Undefined" not in shown
    assert "Kind." not in shown
    assert "--tuner.head What it is. [default width=4,kind=soft]" in " ".join(
        lmflow("plugins", "show", "every").out.split()
    )
    [described] = [
        each for each in json.loads(lmflow("plugins", "--json").out)["plugins"] if each["distribution"] == "acme-every"
    ]
    by_name = {each["name"]: each["default"] for each in described["components"][0]["options"]}
    assert (by_name["kind"], by_name["head"], by_name["path"]) == ("soft", {"width": 4, "kind": "soft"}, "x/y")


def test_references_in_the_schema_lead_somewhere(plugins):
    whole = schema(plugins)
    json.dumps(whole)
    text = json.dumps(whole)
    references = {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}
    assert "#/$defs/tuner.every.Head" in references
    assert "#/$defs/tracker.note.Head" in references
    for reference in references:
        group, name = reference.removeprefix("#/").split("/")
        assert name in whole[group], reference


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("whole", "x", "expected a whole number, got 'x'"),
        ("numbered", "3", "must be one of 1, 2 or 'auto', got '3'"),
        ("choice", "c", "must be one of 'a' or 'b', got 'c'"),
        ("kind", "harder", "must be one of 'soft' or 'hard', got 'harder'; did you mean hard?"),
        ("switch", "aut", "must be one of"),
        ("names", "[a", "expected a list, got '[a'"),
        ("matrix", "1,2", "expected a list, got '1,2'"),
        ("sizes", "1,x", "[1]: expected a whole number, got 'x'"),
        ("head", "widht=3", "widht: unknown key"),
        ("head", "width=x", "width: expected a whole number, got 'x'"),
        ("head", "8", "expected pairs like a=1,b=2, got '8'"),
        ("heads", '[{"width": "x"}]', "[0].width: expected a whole number, got 'x'"),
        ("rates", "a=x", "a: expected a number, got 'x'"),
        ("level", "3", "must be one of"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place(plugins, lmflow, option, text, said):
    done = lmflow("recipe", "show", "--tuner", "every", f"--tuner.{option}={text}")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(f"error: --tuner.{option}: "), done.err
    assert said in done.err


def test_a_dotted_path_into_an_option_says_how_to_set_it(plugins, lmflow):
    done = lmflow("recipe", "show", "--tuner", "every", "--tuner.head.width", "3")
    assert done.err == "error: --tuner.head.width: unknown option; tuner.head is set as a whole: KEY=VALUE,…\n"


def test_a_flag_of_one_component_is_no_flag_of_another(plugins, lmflow, install_distribution):
    install_distribution("acme-flag", FLAG)
    for arguments in (["--tuner", "lora", "--tuner.rank", "16"], ["--tuner.rank", "16", "--tuner=lora"]):
        done = lmflow("recipe", "show", *arguments)
        assert done.code == 0, done.err
        assert "rank: 16" in done.out
    assert "rank: true" in lmflow("recipe", "show", "--tuner.rank", "--tuner", "flagged").out
    assert "flag_or_text: new" in lmflow("recipe", "show", "--tuner", "every", "--tuner.flag_or_text", "new").out
    assert "flag_or_text: false" in lmflow("recipe", "show", "--tuner", "every", "--no-tuner.flag_or_text").out


FLAG = """
from pydantic import Field
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl

class Flagged(Tuner):
    "Have a flag."
    name = "flagged"
    rank: bool = Field(False, description="Whether it has rank.")
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Flagged]
"""

REFUSED = """
from __future__ import annotations
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Callable, Literal
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field
from lmflow.components import Tuner
from lmflow.hookspecs import hookimpl
if TYPE_CHECKING:
    from somewhere import Unknown

class Loose(BaseModel):
    width: int = 4

class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    raw: bytes = b""

class Odd(Enum):
    A = 1.5

class Bad(Tuner):
    "Have an option that cannot be one."
    name = "bad"
    {field}
    def prepare(self, model): return model

@hookimpl
def lmflow_tuners(): return [Bad]
"""


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("bytes", "option x has the type bytes, which cannot be an option; use str"),
        ("set[str]", "option x has the type set[str], which cannot be an option; use list"),
        ("Any", "option x has the type Any, which cannot be an option; use the types it really takes"),
        ("SecretStr", "use str with the name of an environment variable"),
        ("Decimal", "option x has the type Decimal, which cannot be an option; use float"),
        ("datetime", "has the type datetime, which cannot be an option; use str, int, float"),
        ("Callable[[int], int]", "which cannot be an option"),
        ("list", "has the type list, which cannot be an option; use list[str]"),
        ("dict", "has the type dict, which cannot be an option; use dict[str, str]"),
        ("dict[int, str]", "has the type dict[int, str]; use dict[str, str]: keys are text"),
        ("list[dict[str, bytes]]", "has the type bytes"),
        ("Loose", "has the model Loose, which takes unknown keys in silence"),
        ("Strict | None", "has the model Strict, whose field raw has the type bytes"),
        ("Odd", "has the choice 1.5 in Odd; choices are text or whole numbers"),
        ("Literal['a', 1.5]", "has the choice 1.5 in Literal['a', 1.5]"),
        ("Literal[1, '1']", "has choices in Literal[1, '1'] that are written alike"),
        ("Unknown", "has the type Unknown, which cannot be an option; use a type that is imported where"),
    ],
)
def test_other_types_are_refused_when_the_plugin_is_loaded(annotation, reason, install_distribution):
    field = f'x: {annotation} = Field(..., description="What it is.")'
    install_distribution("acme-bad", REFUSED.replace("{field}", field))
    [broken] = load_plugins().broken
    assert broken.reason.startswith("tuner bad: option x has ")
    assert reason in broken.reason


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ('x: int = Field(None, description="X.")', "option x has the default None and the type int; add | None"),
        (
            'x: int = Field(1, alias="y", description="X.")',
            "option x has an alias; an option is called as its field is",
        ),
        ('x: int = Field(1, exclude=True, description="X.")', "option x is excluded from the dump"),
        ("@computed_field\n    def x(self) -> int: return 1", "x is a computed field; use a property"),
    ],
)
def test_what_a_dumped_recipe_would_lose_is_refused(field, reason, install_distribution):
    install_distribution("acme-bad", REFUSED.replace("{field}", field))
    [broken] = load_plugins().broken
    assert reason in broken.reason


def test_a_recipe_of_a_component_that_loads_is_written_the_same(plugins, tmp_path: Path, lmflow):
    shown = lmflow("recipe", "show", "--tuner", "every", "--trackers", "note", "--trackers.note.head", "width=9")
    (tmp_path / "recipe.yaml").write_text(shown.out)
    assert lmflow("recipe", "show", tmp_path / "recipe.yaml").out == shown.out
