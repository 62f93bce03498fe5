"""The lora tuner through the conformance suite, with one class for each set of options that changes what it does."""

import pytest

from lmflow.components import Tuner
from lmflow.testing import TunerSuite
from lmflow_lora.lora import Lora


class TestLora(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora()


class TestOnGpt2(TunerSuite):
    """Layers whose weights are transposed, and a head tied to the embeddings."""

    architecture = "gpt2"

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora()


class TestDropout(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=2, dropout=0.2)


class TestDora(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, dora=True)


class TestRankStabilised(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, rslora=True, target_modules=["q_proj", "v_proj"])


class TestPissa(TunerSuite):
    """The principal part of each weight is taken out of the base and trained."""

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, initialisation="pissa")


class TestOlora(TunerSuite):
    """The base is changed at the start here too."""

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, initialisation="olora")


class TestOrthogonal(TunerSuite):
    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, initialisation="orthogonal")


class TestFurtherModules(TunerSuite):
    """Modules trained in full beside the adapter, the head among them."""

    @pytest.fixture
    def tuner(self) -> Tuner:
        return Lora(rank=4, modules_to_save=["lm_head"])
