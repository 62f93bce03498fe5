from __future__ import annotations

import pytest

from lmflow.formatting import change, counted, duration, number, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1234, "1,234"), (1234.6, "1,235"), (1e-5, "1e-5"), (3.0, "3"), (0.123456, "0.1235")],
)
def test_numbers(value: float, text: str):
    assert number(value) == text


def test_numbers_that_are_none():
    assert number(float("nan")) == "nan"
    assert number(float("inf")) == "inf"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.99, "10.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (92, "1 min 32 s"),
        (3600 * 2 + 300, "2 h 5 min"),
        (86400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(512, "512 B"), (93e6, "93 MB"), (999_999, "1 MB"), (1.23e9, "1.2 GB")])
def test_sizes(count: float, text: str):
    assert size(count) == text


def test_changes_carry_their_sign_and_zero_carries_none():
    assert change(1, 1.5) == "+0.500"
    assert change(1, 0.5, 1) == "\N{MINUS SIGN}0.5"
    assert change(1, 0.99999) == "0"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (1234, "1,234 samples")]
)
def test_counts(count: int, text: str):
    assert counted(count, "sample") == text
