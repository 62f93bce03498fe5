"""Adapters upon their bases: all of their tensors, on the weights they were trained on, merged as they were beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError
from lmflow.models.pretrained import Pretrained
from lmflow.testing.tiny import tiny_model
from lmflow_lora.adapter import Adapter
from lmflow_lora.loading import merged
from lmflow_lora.lora import Lora

IDS = torch.tensor([[5, 9, 13, 21, 8]])


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS).logits


def tuned(directory: Path, tuner: Lora) -> Any:
    """The model at `directory` with the tuner's adapter, moved as training would."""
    model = Pretrained(path=str(directory)).load(LoadRequest())
    model = model.with_module(tuner.prepare(model.module))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.module.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def base(model_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_directory, tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return Lora(rank=4).save(tuned(base, Lora(rank=4)), tmp_path / "run")


def rewrite(adapter: Path, rename: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = {rename(name): each for name, each in load_file(file).items()}
    save_file({name: each for name, each in tensors.items() if name}, file)


def refused(adapter: Path) -> str:
    with pytest.raises(LmflowError) as caught:
        Adapter(path=str(adapter)).load(LoadRequest())
    return str(caught.value)


def test_an_adapter_of_which_nothing_matches(adapter: Path):
    rewrite(adapter, lambda name: name.replace("base_model.model.", "base_model.model.other."))
    message = refused(adapter)
    assert "28 tensors missing: " in message
    assert "28 tensors in the files and not in the model: " in message


def test_an_adapter_that_lacks_a_tensor(adapter: Path):
    rewrite(adapter, lambda name: "" if "layers.0.self_attn.q_proj.lora_B" in name else name)
    assert "1 tensor missing: base_model.model.model.layers.0.self_attn.q_proj.lora_B" in refused(adapter)


def test_an_adapter_of_another_rank_than_it_says(adapter: Path):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": 2}))
    message = refused(adapter)
    assert "its tensors do not fit its base: size mismatch for base_model" in message
    assert len(message.splitlines()) == 1


def test_other_weights_at_the_place_of_the_base(adapter: Path, base: Path, model_directory: Path):
    tiny_model(seed=5).save(base)
    message = refused(adapter)
    assert f"was trained on the weights of {base} (fingerprint " in message
    assert f"those of {base} (fingerprint " in message
    assert "--model.base" in message
    assert Adapter(path=str(adapter), base=str(model_directory)).load(LoadRequest())


def test_a_base_named_is_compared_too(adapter: Path, tmp_path: Path):
    tiny_model(seed=5).save(tmp_path / "other")
    with pytest.raises(LmflowError, match="are others"):
        Adapter(path=str(adapter), base=str(tmp_path / "other")).load(LoadRequest())
    (adapter / "base_weights.json").unlink()
    assert Adapter(path=str(adapter), base=str(tmp_path / "other")).load(LoadRequest())


def test_a_relative_base_is_found_from_anywhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(base.parent)
    model = tuned(Path(base.name), Lora(rank=4))
    adapter = Lora(rank=4).save(model, tmp_path / "run")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(logits(Adapter(path=str(adapter)).load(LoadRequest()).module), logits(model.module))


def test_a_tensor_missing_in_the_base_names_adapter_and_base(adapter: Path, base: Path):
    file = base / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, {"format": "pt"})
    message = refused(adapter)
    assert f"base model of adapter {adapter} cannot be loaded from {base}" in message
    assert "1 tensor missing: model.norm.weight" in message


def test_an_encoder_decoder_is_no_base(adapter: Path, tmp_path: Path):
    from transformers import BartConfig

    BartConfig().save_pretrained(tmp_path / "bart")
    (adapter / "base_config.json").unlink()
    with pytest.raises(LmflowError, match="encoder-decoder models are not supported"):
        Adapter(path=str(adapter), base=str(tmp_path / "bart")).load(LoadRequest())


# Heads that share their weights with the embeddings


@pytest.fixture(params=["llama", "gpt2"])
def tied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param, tie_word_embeddings=True).save(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.mark.parametrize("options", [{"target_modules": r".*(lm_head|mlp.*proj)"}, {"modules_to_save": ["lm_head"]}])
def test_a_tied_head_is_merged_as_it_was_beside(options: dict[str, Any], tied: Path, tmp_path: Path):
    """Merging into shared weights would change the embeddings too."""
    tuner = Lora(rank=4, **options)
    model = tuned(tied, tuner)
    expected = logits(model.module)
    assert not torch.allclose(expected, logits(Pretrained(path=str(tied)).load(LoadRequest()).module), atol=1e-2)
    adapter = tuner.save(model, tmp_path / "run")
    loaded = Adapter(path=str(adapter)).load(LoadRequest())
    torch.testing.assert_close(logits(loaded.module), expected, rtol=0, atol=1e-5)
    loaded.save(tmp_path / "merged")
    again = Pretrained(path=str(tmp_path / "merged")).load(LoadRequest())
    torch.testing.assert_close(logits(again.module), expected, rtol=0, atol=1e-5)


def test_heads_that_are_not_adapted_stay_tied(tied: Path):
    module = merged(tuned(tied, Lora(rank=4)).module)
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert module.config.tie_word_embeddings
