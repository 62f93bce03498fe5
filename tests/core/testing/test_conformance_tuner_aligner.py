"""The core's own tuner and aligner through the conformance suites."""

import pytest

from lmflow.builtin.full import Full
from lmflow.builtin.sft import Sft
from lmflow.components import Aligner, Tuner
from lmflow.testing import AlignerSuite, TunerSuite


class TestFull(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Full()


class TestFullOnGpt2(TunerSuite):
    """Another architecture, whose head is tied to the embeddings."""

    architecture = "gpt2"

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Full()


class TestSft(AlignerSuite):
    @pytest.fixture
    def aligner(self) -> Aligner:
        return Sft(heldout_prompts=2)
