"""The one way to a model's files: what is read of them is what the model consists of, and nothing else runs."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.pretrained import Pretrained
from lmflow.models.source import ModelSource, check_path, check_report

Tensors = dict[str, torch.Tensor]
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    """The tiny model in a directory that a test may damage."""
    return shutil.copytree(model_directory, tmp_path / "model")


def rewrite(directory: Path, change: Callable[[Tensors], object]) -> None:
    """Write the weights with something about them changed."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def configure(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(directory: Path) -> str:
    """What is said of the model, which is not loaded."""
    with pytest.raises(LmflowError) as caught:
        Pretrained(path=str(directory)).load(LoadRequest())
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Loading reports


def test_a_missing_tensor_is_named(copied: Path):
    rewrite(copied, lambda tensors: tensors.pop(NORM))
    assert f"1 tensor missing: {NORM}." in refused(copied)


def test_a_configuration_with_more_layers_than_the_files(copied: Path):
    configure(copied, num_hidden_layers=3, layer_types=None)
    assert "9 tensors missing: model.layers.2.input_layernorm.weight, " in refused(copied)


def test_a_configuration_with_fewer_layers_than_the_files(copied: Path):
    configure(copied, num_hidden_layers=1, layer_types=None)
    assert "9 tensors in the files and not in the model: model.layers.1.input_layernorm.weight, " in refused(copied)


def test_a_tensor_of_another_shape_is_shown_with_both(copied: Path):
    rewrite(copied, lambda tensors: tensors.update({NORM: torch.ones(31)}))
    assert f"1 tensor of another shape: {NORM} (31 in the file, 32 by the configuration)" in refused(copied)


def test_what_older_checkpoints_hold_beside_their_weights_is_no_fault(copied: Path):
    whole = Pretrained(path=str(copied)).load(LoadRequest())
    rewrite(copied, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    again = Pretrained(path=str(copied)).load(LoadRequest())
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))


def test_only_what_is_named_may_be_left_unread():
    report = {"missing_keys": set(), "unexpected_keys": {"lm_head.weight", "other.weight"}, "mismatched_keys": set()}
    with pytest.raises(LmflowError, match=r"1 tensor in the files and not in the model: other\.weight\."):
        check_report("here", "--reward.path", report, r"^lm_head\.")
    report["unexpected_keys"].discard("other.weight")
    check_report("here", "--reward.path", report, r"^lm_head\.")


def test_many_tensors_are_counted():
    report = {"missing_keys": {f"layers.{n}" for n in range(9)}}
    with pytest.raises(LmflowError, match=r"9 tensors missing: layers\.0, layers\.1, layers\.2 and 6 more\."):
        check_report("here", "model.path", report)


# Code from outside


@pytest.fixture
def with_code(copied: Path) -> Path:
    """A model whose configuration names code that comes with it, which leaves a mark where it runs."""
    mark = copied / "ran"
    (copied / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoModelForSequenceClassification": "own.Own"}
    configure(copied, model_type="own-type", auto_map=auto)
    file = copied / "tokenizer_config.json"
    kept = json.loads(file.read_text())
    kept.pop("tokenizer_class", None)
    file.write_text(json.dumps({**kept, "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}))
    return copied


@pytest.mark.parametrize("part", ["configuration", "tokenizer"])
def test_no_code_runs_and_nobody_is_asked(part: str, with_code: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    with pytest.raises(LmflowError, match=r"custom code|trust_remote_code"):
        getattr(ModelSource(str(with_code)), part)()
    assert not (with_code / "ran").exists()


# Places


def test_the_option_that_named_a_place_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"^--reward\.path: .*nowhere does not exist$"):
        check_path(str(tmp_path / "nowhere"), option="--reward.path")
    with pytest.raises(RecipeError, match=r"^model\.base: .* holds no model$"):
        ModelSource(str(tmp_path), "model.base").check()


def test_a_place_here_is_saved_as_an_absolute_path(model_directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(model_directory.parent)
    model = Pretrained(path=model_directory.name)
    assert model.path == str(model_directory)
    assert Pretrained(path="owner/name").path == "owner/name"
    monkeypatch.setenv("HOME", str(model_directory.parent))
    assert Pretrained(path=f"~/{model_directory.name}").path == str(model_directory)


@pytest.mark.parametrize(
    ("kind", "said"), [("t5", "encoder-decoder"), ("bart", "encoder-decoder"), ("xlnet", "another order")]
)
def test_models_that_are_not_causal_are_one_sentence(kind: str, said: str, copied: Path):
    from transformers import AutoConfig

    AutoConfig.for_model(kind).save_pretrained(copied)
    message = refused(copied)
    assert message.endswith("are not supported.")
    assert said in message
