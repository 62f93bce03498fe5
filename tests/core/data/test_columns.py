"""Fields of records that are called otherwise, and fields that are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from lmflow.data.columns import FieldWatch, names_in, renamed, unmet, without
from lmflow.data.dataset import load_dataset, read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.record import Record
from lmflow.data.tools.check import check_data
from lmflow.errors import DataError
from lmflow.recipe.sections.data import DataOptions

Write = Callable[[str, Iterable[Any]], str]


def records(*found: dict[str, Any] | DataError) -> list[Record | DataError]:
    return [Record(each, f"f:{i}") if isinstance(each, dict) else each for i, each in enumerate(found, 1)]


def test_columns_take_the_place_of_fields_of_their_name():
    [found] = renamed(records({"prompt": "not this", "question": "q", "id": 1}), {"prompt": "question"})
    assert isinstance(found, Record)
    assert dict(found.fields) == {"prompt": "q", "id": 1}
    [swapped] = renamed(records({"a": 1, "b": 2}), {"a": "b", "b": "a"})
    assert isinstance(swapped, Record)
    assert dict(swapped.fields) == {"a": 2, "b": 1}
    same = records({"a": 1})
    assert list(renamed(same, {})) == same


def test_a_column_that_a_record_lacks_is_an_error_of_that_record():
    found = list(renamed(records({"q": "x"}, {}, DataError("f:3: broken")), {"prompt": "q"}))
    assert isinstance(found[0], Record)
    assert [str(each) for each in found[1:]] == [
        "f:2: q: data.columns names it; the record has no field",
        "f:3: broken",
    ]


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ([], {"a": 1, "turns": [{"x": 1, "w": 0}, "odd"], "o": {"w": {"x": 2}}}),
        (["a"], {"turns": [{"x": 1, "w": 0}, "odd"], "o": {"w": {"x": 2}}}),
        (["turns.w", "missing", "a.b"], {"a": 1, "turns": [{"x": 1}, "odd"], "o": {"w": {"x": 2}}}),
        (["o.w.x", "turns"], {"a": 1, "o": {"w": {}}}),
    ],
)
def test_fields_that_are_left_out(ignored: list[str], expected: dict[str, Any]):
    given = {"a": 1, "turns": [{"x": 1, "w": 0}, "odd"], "o": {"w": {"x": 2}}}
    [found] = without(records(given), ignored)
    assert isinstance(found, Record)
    assert found.fields == expected
    assert given["turns"] == [{"x": 1, "w": 0}, "odd"], "what was read is left alone"


def test_a_field_whose_name_has_a_dot_is_left_out_whole():
    [found] = without(records({"a.b": 1, "a": {"b": 2}}), ["a.b"])
    assert isinstance(found, Record)
    assert found.fields == {"a": {"b": 2}}


def test_a_record_that_cannot_be_read_stays_one():
    broken = DataError("f:1: broken")
    assert list(without([broken], ["a"])) == [broken]


def test_fields_are_left_out_by_the_name_they_have_in_the_file(write: Write):
    path = write("a.jsonl", [{"prompt": "old", "question": "q", "completion": "a", "label": "sports"}])
    data = DataOptions(path=path, ignore=["label", "prompt"], columns={"prompt": "question"})
    [sample] = read_samples(data, Formats(FORMATS))
    assert (sample.messages[0].content, dict(sample.record)) == ("q", {"prompt": "q", "completion": "a"})


def test_fields_of_turns_are_called_otherwise():
    given = {"turns": [{"x": 1, "mask": 0, "train": 5}, {"y": 2}, "odd"], "o": {"a": 1}, "p.q": 3}
    columns = {"turns.train": "turns.mask", "o.b": "o.a", "p.r": "p.q", "turns.z": "turns.w"}
    [found] = renamed(records(given), columns)
    assert isinstance(found, Record)
    assert found.fields == {"turns": [{"x": 1, "train": 0}, {"y": 2}, "odd"], "o": {"b": 1}, "p.r": 3}, (
        "a name with a point in it is the field of that name, where there is one"
    )
    [missing] = renamed(records({"a": 1}), {"b": "c.d"})
    assert "c.d: data.columns names it" in str(missing)


def test_names_that_no_record_has_are_told():
    watch = FieldWatch({"data.ignore": ["a", "turns.w", "turns.wieght", "b"], "data.columns": ["o.x"]})
    given = records(
        {"a": 1, "turns": [{"weight": 1}, "odd"]}, DataError("broken"), {"turns": [{"w": 1}], "o": {"x": 1}}
    )
    assert list(watch.over(given)) == given
    assert unmet([watch]) == [
        "data.ignore: no record has turns.wieght; did you mean turns.weight?",
        "data.ignore: no record has b",
    ]
    other = FieldWatch(watch.options)
    list(other.over(records({"b": 1, "turns": [{"wieght": 0}]})))
    assert unmet([watch, other]) == [], "one of two places is enough"
    assert list(names_in({"a": {"b": {"c": 1}}, "d": [{"e": 1}, 2]})) == ["a", "a.b", "d", "d.e"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_misspelt_name_is_refused_and_one_of_later_records_is_not(streaming: bool, write: Write):
    rows: list[dict[str, Any]] = [{"prompt": f"{n}", "completion": "a"} for n in range(40)]
    path = write("a.jsonl", [*rows, {"prompt": "q", "completion": "bad", "label": False}])
    for load in (
        lambda data: load_dataset(data, Formats(FORMATS), 0),
        lambda data: read_samples(data, Formats(FORMATS)),
        lambda data: check_data(data, Formats(FORMATS), None),
    ):
        load(DataOptions(path=path, ignore=["label"], streaming=streaming))
        with pytest.raises(DataError, match=r"data\.ignore: no record has promt; did you mean prompt\?"):
            load(DataOptions(path=path, ignore=["label", "promt"], streaming=streaming))
    data = DataOptions(path=path, ignore=["labl"], limit=3)
    assert "\n  data.ignore: none of the records read has labl" in load_dataset(data, Formats(FORMATS), 0)[1].describe()
    told: list[str] = []
    assert len(read_samples(data, Formats(FORMATS), told.append)) == 3
    assert told == ["data.ignore: none of the records read has labl"]
    assert check_data(data, Formats(FORMATS), None).unmet == ("data.ignore: none of the records read has labl",)
