"""Reading recipe files with stages: every value with its line, every mistake of form with its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lmflow.errors import RecipeError
from lmflow.recipe.yaml import read_settings, write

Write = Callable[[str], Path]

BY_NAME = (
    "training: {seed: 1}\nstages:\n  sft:\n    tuner: {name: lora, rank: 4}\n  rl:\n    model: stage:sft\n  last:\n"
)
LISTED = (
    "training: {seed: 1}\nstages:\n  - name: sft\n    tuner: {name: lora, rank: 4}\n"
    "  - model: stage:sft\n    name: rl\n  - name: last\n"
)


@pytest.mark.parametrize(("text", "lines"), [(BY_NAME, [3, 4, 5, 6, 7]), (LISTED, [3, 4, 5, 5, 7])])
def test_stages_are_read_by_name_and_from_a_list(text: str, lines: list[int], write: Write):
    problems: list[str] = []
    found = list(read_settings(write(text), problems))
    assert problems == []
    assert [(setting.path, setting.value) for setting in found] == [
        ("training.seed", 1),
        ("stages.sft", None),
        ("stages.sft.tuner.name", "lora"),
        ("stages.sft.tuner.rank", 4),
        ("stages.rl", None),
        ("stages.rl.model.name", "stage:sft"),
        ("stages.last", None),
    ]
    sft, name, rl, model, last = (found[index] for index in (1, 2, 4, 5, 6))
    assert [int(each.origin.place.rpartition(":")[2]) for each in (sft, name, rl, model, last)] == lines


MERGED = """
training: &usual {seed: 1, epochs: 2}
tuner: &narrow {name: lora, rank: 2}
stages:
  - &first
    name: a
    training:
      seed: 5
      <<: *usual
    tuner: {<<: [*narrow, *usual], rank: 4}
  - <<: *first
    name: b
"""


def test_mappings_are_merged_under_what_is_written(write: Write):
    """As YAML 1.1 has it: what a mapping says itself stands before what it takes over, and earlier before later."""
    problems: list[str] = []
    found = [setting for setting in read_settings(write(MERGED), problems) if setting.path.startswith("stages.")]
    assert problems == []
    of = [
        {each.path.removeprefix(f"stages.{name}."): each.value for each in found if f".{name}." in each.path}
        for name in "ab"
    ]
    assert of[0] == of[1]
    assert of[0] == {
        "training.seed": 5,
        "training.epochs": 2,
        "tuner.name": "lora",
        "tuner.rank": 4,
        "tuner.seed": 1,
        "tuner.epochs": 2,
    }


@pytest.mark.parametrize("text", ["training:\n  <<: 3\n", "training:\n  <<: [3]\n", "training: &a\n  <<: *a\n"])
def test_only_mappings_are_merged(text: str, write: Write):
    with pytest.raises(RecipeError, match=r"recipe.yaml:[12]: <<: expected sections or options to take over"):
        list(read_settings(write(text), []))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages: {}\n", ":1: stages: expected stages by name, each a recipe; there is none"),
        ("stages:\n", ":1: stages: expected stages by name, each a recipe; there is none"),
        ("stages: lora\n", ":1: stages: expected stages by name, each a recipe; there is none"),
        ("stages: []\n", ":1: stages: expected stages by name, each a recipe; there is none"),
        ("stages:\n  a: {}\n  a: {}\n", ":3: stages.a: given twice (first in line 2)"),
        ("stages:\n- name: a\n- name: a\n", ":3: stages.a: given twice (first in line 2)"),
        ("stages:\n- name: a\n- tuner: lora\n", ":3: stages: each stage of a list needs a name, as in `- name: sft`"),
        ("stages:\n- name: a\n- lora\n", ":3: stages: each stage of a list needs a name, as in `- name: sft`"),
        ("stages:\n  a: lora\n", ":2: stages.a: expected sections such as `tuner: lora`"),
        ("stages:\n  a:\n    tuner: {rank: 1, rank: 2}\n", ":3: tuner.rank: given twice (first in line 3)"),
    ],
)
def test_mistakes_of_form_name_their_line(text: str, expected: str, write: Write):
    problems: list[str] = []
    file = write(text)
    list(read_settings(file, problems))
    assert problems == [f"{file}{expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tuner: lora\ntraining:\n  seed: !number 3\n", ":3: could not determine a constructor for the tag '!number'"),
        ("stages: &s {a: *s}\n", ":1: found unconstructable recursive node"),
    ],
)
def test_what_is_no_plain_value_is_named_with_its_line(text: str, expected: str, write: Write):
    file = write(text)
    with pytest.raises(RecipeError) as caught:
        list(read_settings(file, []))
    assert list(caught.value.problems) == [f"{file}{expected}"]


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, ": 490,329,064 values, most of them by aliases (`*name`); at most 100,000 are read"),
        ("tuner: " + "[" * 5000 + "]" * 5000, ": values inside values, too deep to read"),
        ("#" * 10_000_001, ": more than 10 MB, which no recipe has"),
    ],
    ids=["aliases", "depth", "size"],
)
def test_what_would_take_all_memory_is_refused(text: str, expected: str, write: Write):
    file = write(text)
    with pytest.raises(RecipeError) as caught:
        list(read_settings(file, []))
    assert list(caught.value.problems) == [f"{file}{expected}"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("+3", 3),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("0b1", "0b1"),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        ("on", "on"),
        ("True", True),
        ("2026-11-29", "2026-11-29"),
        ("null", None),
        ("~", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object, write: Write):
    [found] = read_settings(write(f"tuner: {{rank: {text}}}\n"), [])
    assert (found.value, type(found.value)) == (value, type(value))


@pytest.mark.parametrize("name", ["a/b", "../a", "..", ".a", "a.b", "a b", "", "-a", "ä", "a" * 65])
def test_a_name_is_that_of_a_directory(name: str, write: Write):
    problems: list[str] = []
    file = write(f"stages: {{{name!r}: {{}}}}\n")
    assert list(read_settings(file, problems)) == []
    assert problems == [
        f"{file}:1: stages: {name!r} cannot be the name of a stage, which names a directory too: "
        "begin with a letter or digit of ASCII, and go on with those, - and _, 64 characters at most"
    ]


def test_what_is_written_reads_as_the_same(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(write({"stages": {"a": {"data": {"path": "on"}}, "b": {"training": {"seed": 1}}}}))
    assert {each.path: each.value for each in read_settings(file, [])} == {
        "stages.a": None,
        "stages.a.data.path": "on",
        "stages.b": None,
        "stages.b.training.seed": 1,
    }
