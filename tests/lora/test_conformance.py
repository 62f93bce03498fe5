"""Tuner lora, with one class for each set of options that changes what it does, and model adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmflow.components import LoadRequest, Model, Tuner
from lmflow.models.pretrained import Pretrained
from lmflow.testing import ModelSuite, TunerSuite
from lmflow_lora.adapter import Adapter
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


class TestAdapter(ModelSuite):
    """An adapter that changes the logits, upon the tiny Llama."""

    @pytest.fixture(scope="class")
    def directory(self, model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        import torch

        tuner, model = Lora(rank=4), Pretrained(path=str(model_directory)).load(LoadRequest())
        tuned = model.with_module(tuner.prepare(model.module))
        with torch.no_grad():
            for name, parameter in tuned.module.named_parameters():
                if "lora_" in name:
                    parameter.fill_(0.02)
        return tuner.save(tuned, tmp_path_factory.mktemp("adapter"))

    @pytest.fixture
    def model_component(self, directory: Path) -> Model:
        return Adapter(path=str(directory))
