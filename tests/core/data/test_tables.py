"""A table gives the records it was made of: nothing that its columns' types added, and all that was in them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmflow.data.containers import read_records
from lmflow.data.dataset import read_samples
from lmflow.data.formats import FORMATS, Formats
from lmflow.data.sample import Sample
from lmflow.recipe.sections.data import DataOptions

pyarrow = pytest.importorskip("pyarrow")
PNG = b"\x89PNG and more"


def write_parquet(table: Any, path: Path) -> None:
    from pyarrow.parquet import write_table

    write_table(table, path)


def write_arrow(table: Any, path: Path) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Any, Path], None]] = {"a.parquet": write_parquet, "a.arrow": write_arrow}


@pytest.fixture(params=WRITERS)
def reread(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The fields of the records of a table with these rows."""

    def read(rows: list[dict[str, Any]], schema: Any = None) -> list[dict[str, Any]]:
        path = tmp_path / request.param
        WRITERS[request.param](pyarrow.Table.from_pylist(rows, schema=schema), path)
        return [dict(record.fields) for record in read_records(path)]

    return read


def test_what_other_rows_have_is_no_part_of_a_row(reread: Callable[..., list[dict[str, Any]]]):
    rows = [
        {"turns": [{"call": {"name": "move", "arguments": {"x": 1}}}, {"content": "done"}], "label": None},
        {"turns": [{"call": {"name": "turn", "arguments": {"theta": 90}}}], "label": True},
    ]
    assert reread(rows) == rows


def test_nulls_that_no_type_put_there_stay(reread: Callable[..., list[dict[str, Any]]]):
    rows = [{"given": [1, None], "text": '{"theta": null}'}, {"given": None, "text": "x"}]
    assert reread(rows) == rows


def test_a_map_is_an_object(reread: Callable[..., list[dict[str, Any]]]):
    inner = pyarrow.struct({"kind": pyarrow.string(), "unit": pyarrow.string()})
    schema = pyarrow.schema({"properties": pyarrow.list_(pyarrow.map_(pyarrow.string(), inner))})
    rows = [{"properties": [{"x": {"kind": "integer"}, "none": None}, {"y": {"unit": "m"}}]}]
    assert reread([{"properties": [list(each.items()) for each in rows[0]["properties"]]}], schema) == rows


def test_a_column_of_json_is_what_it_says(reread: Callable[..., list[dict[str, Any]]]):
    schema = pyarrow.schema({"a": pyarrow.json_()})
    assert reread([{"a": '{"theta": null}'}, {"a": None}], schema) == [{"a": {"theta": None}}, {"a": None}]


def test_an_image_is_its_path_or_a_data_uri(reread: Callable[..., list[dict[str, Any]]]):
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema({"image": kind, "images": pyarrow.list_(kind)})
    held, named = {"bytes": PNG, "path": "a.png"}, {"bytes": None, "path": "b.png"}
    [row] = reread([{"image": held, "images": [named, {"bytes": b"?", "path": None}]}], schema)
    assert row["image"] == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert row["images"] == ["b.png", "data:application/octet-stream;base64,Pw=="]


# Any records of one shape

NAMES = st.sampled_from(["x", "y", "theta", "unit"])
Values = st.SearchStrategy[Any]
PLAIN: list[Values] = [st.integers(-9, 9), st.booleans(), st.text(st.characters(codec="utf-8"), max_size=5)]


def objects(fields: dict[str, Values]) -> Values:
    """Objects of some of these fields: a table's type has them all."""
    return st.fixed_dictionaries({}, optional=fields)


OBJECTS = st.recursive(
    st.dictionaries(NAMES, st.sampled_from(PLAIN), max_size=3).map(objects),
    lambda inner: st.dictionaries(NAMES, inner | inner.map(lambda each: st.lists(each, max_size=2)), max_size=3).map(
        objects
    ),
    max_leaves=4,
)
"""Kinds of objects: values of one kind fit into one column."""


def dialogue(arguments: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A record in which a tool is offered and called."""
    call = {"type": "function", "function": {"name": "move", "arguments": arguments}}
    turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"messages": turns, "tools": [{"type": "function", "function": {"name": "move", "parameters": schema}}]}


def samples_of(path: Path) -> list[Sample]:
    """The samples of a file, but for where they stood."""
    found = read_samples(DataOptions(path=str(path)), Formats(FORMATS))
    return [replace(sample, record={}, source="") for sample in found]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), arguments=OBJECTS, schema=OBJECTS, name=st.sampled_from([*WRITERS]))
def test_a_table_gives_the_samples_of_its_records(
    data: st.DataObject, arguments: Values, schema: Values, name: str, tmp_path: Path
):
    rows = data.draw(st.lists(st.builds(dialogue, arguments, schema), min_size=1, max_size=4))
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    try:
        WRITERS[name](pyarrow.Table.from_pylist(rows), tmp_path / name)
    except pyarrow.ArrowNotImplementedError:  # Parquet has no objects without fields
        assume(False)
    assert samples_of(tmp_path / name) == samples_of(tmp_path / "a.jsonl")
