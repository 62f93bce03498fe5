"""LMFlow's own file is read piece by piece, in whatever order its keys stand."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmflow.data.json_container import NoContainer, declared_type, iterate_instances

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    data=st.data(), instances=st.lists(JSON, max_size=5), kind=JSON, others=st.dictionaries(st.text(max_size=3), JSON)
)
def test_the_order_of_the_keys_means_nothing(
    data: st.DataObject, instances: list[Any], kind: Any, others: dict[str, Any]
):
    whole = {**others, "type": kind, "instances": instances}
    order = data.draw(st.permutations([*whole]))
    text = json.dumps({key: whole[key] for key in order}, indent=data.draw(st.none() | st.just(1))).encode()
    assert declared_type(io.BytesIO(text)) == kind
    assert [value for value, _ in iterate_instances(io.BytesIO(text))] == instances


@pytest.mark.parametrize("text", ['{"a": 1}', '{"instances": 3}', '{"instances": {"a": []}}', "{oops", "[]", '"x"', ""])
def test_what_is_no_container(text: str):
    with pytest.raises(NoContainer):
        declared_type(io.BytesIO(text.encode()))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"instances": [1,\n2,\noops]}', 3, "Expecting value"),
        ('{"instances": [1,\n2}', 2, r"Expecting '\]' or ','"),
        ('{"instances": [1]\n"type": "x"}', 2, "Expecting '}' or ','"),
        ('{"instances": [1],\n"type"}', 2, "Expecting ':'"),
        ('{"instances": [1],\n1: 2}', 2, "Expecting property name"),
        ('{"instances": [1]}\n{}', 2, "Extra data"),
        ('{"instances": [1],\n"instances": [2]}', 2, "A second 'instances'"),
    ],
)
def test_what_is_broken_has_its_line(text: str, line: int, message: str):
    with pytest.raises(json.JSONDecodeError, match=message) as caught:
        list(iterate_instances(io.BytesIO(text.encode())))
    assert caught.value.lineno == line


def test_a_fault_among_the_instances_is_none_of_another_kind_of_file():
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        declared_type(io.BytesIO(b'{"instances": [1, oops]}'))


def test_bytes_that_are_no_text_have_their_line():
    with pytest.raises(json.JSONDecodeError, match=r"not UTF-8 \(byte 0xff\)") as caught:
        list(iterate_instances(io.BytesIO('{"instances": ["é",\n "'.encode() + b'\xff"]}')))
    assert (caught.value.lineno, caught.value.colno) == (2, 3)


def test_the_instances_are_not_read_where_the_type_is_known():
    stream = io.BytesIO(b'{"type": "x", "instances": [' + b"1," * (2 << 20) + b"1]}")
    assert declared_type(stream) == "x"
    assert stream.tell() < 2 << 20
