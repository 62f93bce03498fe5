"""Inferencer `speculative` through the conformance suite: with prompt lookup, and with a draft."""

from pathlib import Path

import pytest

from lmflow.components import Inferencer
from lmflow.testing import InferencerSuite
from lmflow.testing.tiny import tiny_letters, tiny_model
from lmflow_speculative.speculative import Speculative


class TestLookup(InferencerSuite):
    draws = 5000

    @pytest.fixture
    def inferencer(self) -> Inferencer:
        return Speculative()


class TestDraft(InferencerSuite):
    """The draft differs from the target, so that proposals are refused too."""

    draws = 5000

    @pytest.fixture
    def inferencer(self, request: pytest.FixtureRequest, tmp_path: Path) -> Inferencer:
        enumerable = "letters" in request.fixturenames
        return Speculative().using(tiny_letters(2) if enumerable else tiny_model(seed=1, sharpness=6, noise_seed=3))
