"""What processes send one another arrives as it was, and calls nothing."""

from __future__ import annotations

import os
import pickle
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from lmflow.data.cache.record_index import RecordIndex, SamplesOnDisk
from lmflow.data.formats.dialogues import Messages
from lmflow.data.record import Record
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.distributed.messages import pack, unpack
from lmflow.inference.types import Sampling


class Pair(NamedTuple):
    a: int
    b: str


@dataclass
class Mine:
    value: Any


SAMPLE = Sample((Message("user", "q"), Message("assistant", "a")), source="f:1", record={"n": [1, None, 2.5]})


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, -2.5, float("inf"), "\udcff", b"\0", True, (1, (2,))], 3: {4}},
        2**80,
        array("q", [1, 2]),
        Counter("aab"),
        Path("a/b"),
        Pair(1, "x"),
        Mine({"deep": Mine(1)}),
        SAMPLE,
        TokenSequence([1, 2], [False, True], "f:1"),
        Sampling(n=3),
        Messages(),
        ValueError,
    ],
    ids=repr,
)
def test_a_value_arrives_as_it_was(value: Any):
    if value is ValueError:
        with pytest.raises(TypeError, match="has to be values; found ValueError"):
            pack(value)
        return
    found = unpack(pack(value))
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_arrives_too():
    assert unpack(pack(float("nan"))) != unpack(pack(float("nan")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (0, 2)])
def test_tensors_are_their_bytes(dtype: torch.dtype, shape: tuple[int, ...]):
    tensor = torch.arange(6)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
    packed = pack({"x": tensor.requires_grad_(dtype.is_floating_point)})
    found = unpack(packed)["x"]
    assert (found.dtype, found.shape, found.requires_grad) == (dtype, torch.Size(shape), False)
    assert torch.equal(found, tensor)
    assert b"torch" not in packed.replace(b"lmflow", b"")


def test_a_slice_of_a_tensor_sends_itself_alone():
    assert len(pack(torch.zeros(1_000_000)[:3])) < 200


def test_arrays_of_numpy():
    for values in (numpy.arange(6).reshape(2, 3), numpy.float32(1.5), numpy.array(["a", "bc"])):
        assert numpy.array_equal(unpack(pack(values)), values)


def test_records_on_disk():
    index = RecordIndex()
    for number in range(3):
        index.append(Record({"messages": [{"role": "user", "content": str(number)}]}, f"f:{number}"))
    samples = unpack(pack(SamplesOnDisk(index, Messages())))
    assert [each.messages[0].content for each in samples] == ["0", "1", "2"]


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "false"),
        Calls(exec, "1"),
        Calls(__import__, "os"),
        Calls(getattr, "a", "upper"),
        Calls(torch.load, "x"),
        Calls(Path.home),
    ],
    ids=lambda call: call.call[0].__name__,
)
def test_nothing_is_called(call: Calls):
    with pytest.raises(TypeError, match="which is no type of values"):
        unpack(pickle.dumps(call))
    with pytest.raises(TypeError, match="has to be values"):
        pack([call])


def test_no_module_is_imported_for_a_message():
    with pytest.raises(TypeError, match=r"another process sent this\.s"):
        unpack(b"cthis\ns\n.")
