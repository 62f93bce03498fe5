"""The reference attention is right, and a back end that is wrong is seen."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import scaled_dot_product_attention

from lmflow.doctor import torch_probe
from lmflow.doctor.torch_probe import compare_attention, exact_attention, import_error, load_error


def test_by_hand():
    """One head of size 1: the first token sees itself; the second weighs 1 and 3 with e^0 and e^(2·ln 3) = 9."""
    query = torch.tensor([[[[0.0], [2.0]]]])
    key = torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[1.0], [3.0]]]])
    expected = torch.tensor([[[[1.0], [(1 + 9 * 3) / 10]]]])
    torch.testing.assert_close(exact_attention(query, key, value), expected)


def test_it_equals_torch_in_double_precision():
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 3, 7, 8, dtype=torch.float64)
    reference = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(exact_attention(query, key, value), reference)


def test_no_token_sees_a_later_one():
    torch.manual_seed(2)
    query, key, value = torch.randn(3, 1, 1, 5, 4)
    before = exact_attention(query, key, value)
    key[..., -1, :], value[..., -1, :] = 9.0, 9.0
    torch.testing.assert_close(exact_attention(query, key, value)[..., :-1, :], before[..., :-1, :])


def test_a_wrong_back_end_is_measured_and_a_failing_one_says_why(monkeypatch):
    def without_mask(query, key, value):
        return scaled_dot_product_attention(query, key, value)

    def failing(query, key, value):
        raise RuntimeError("No available kernel\nand how to get one")

    made = [("leaky", without_mask, ["float32"]), ("absent", failing, ["float32", "bfloat16"])]
    monkeypatch.setattr(torch_probe, "backends", lambda device, low: made)
    found = compare_attention("cpu")
    assert found["leaky"]["difference"] > 100 * found["leaky"]["tolerance"]
    assert found["absent"] == {"error": "No available kernel"}


def test_a_back_end_that_takes_16_bits_only_is_given_them(monkeypatch):
    def half_only(query, key, value):
        if query.dtype == torch.float32:
            raise RuntimeError("only half")
        return scaled_dot_product_attention(query, key, value, is_causal=True)

    made = [("half", half_only, ["float32", "bfloat16"])]
    monkeypatch.setattr(torch_probe, "backends", lambda device, low: made)
    found = compare_attention("cpu")["half"]
    assert found["dtype"] == "bfloat16"
    assert found["difference"] <= found["tolerance"]


def test_why_something_does_not_load(tmp_path):
    assert import_error("json") == ""
    assert import_error("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"
    library = tmp_path / "_C.so"
    library.write_bytes(b"no library")
    assert load_error(str(library)) not in ("", f"{library}")
    assert str(library) not in load_error(str(library))
