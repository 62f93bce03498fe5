"""What is counted of speculation, and how sure its figures are."""

from __future__ import annotations

import pytest

from lmflow_speculative.statistics import wilson_interval


def test_the_interval_of_a_share() -> None:
    """Worked by hand for three of three: middle (1 + z²/6) / (1 + z²/3), half z·z/6 / (1 + z²/3), with z² = 3.8415."""
    low, high = wilson_interval(3, 3)
    assert (low, high) == (pytest.approx(0.4385, abs=1e-4), 1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(500, 1000)
    assert low == pytest.approx(1 - high)
    assert high - low == pytest.approx(0.0618, abs=1e-3)
