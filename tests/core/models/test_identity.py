"""Fingerprints of weights: equal for the same numbers however they are stored, others for other numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmflow.components import LoadRequest
from lmflow.errors import LmflowError
from lmflow.models import identity
from lmflow.models.identity import BaseWeights, combined, differ, fingerprint, fingerprint_of, read_base, write_base
from lmflow.models.pretrained import Pretrained
from lmflow.models.source import ModelSource


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_directory, tmp_path / "model")


def of(directory: Path) -> str | None:
    return fingerprint(ModelSource(str(directory)))


@pytest.fixture(params=["whole", "sampled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All values are read, or blocks of each tensor, as of large files."""
    if request.param == "sampled":
        monkeypatch.setattr(identity, "WHOLE", 0)
        monkeypatch.setattr(identity, "BLOCK", 16)


@pytest.mark.usefixtures("way")
def test_a_copy_and_one_in_several_files_are_the_same(model_directory: Path, copied: Path, tmp_path: Path):
    assert of(copied) == of(model_directory)
    Pretrained(path=str(copied)).load(LoadRequest()).module.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert of(tmp_path / "parts") == of(model_directory)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", ["a tensor moves", "a tensor is gone", "a tensor is new", "another dtype"])
def test_other_weights_are_others(change: str, model_directory: Path, copied: Path):
    file = copied / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    if change == "a tensor moves":
        tensors[name] = tensors[name] * 1.001
    elif change == "a tensor is gone":
        del tensors[name]
    elif change == "a tensor is new":
        tensors["more"] = torch.zeros(1)
    else:
        tensors = {key: each.to(torch.bfloat16) for key, each in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    assert of(copied) != of(model_directory)


def test_of_large_files_a_fixed_number_of_bytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identity, "WHOLE", 0)
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(1 << 20, dtype=torch.float32)}, file)
    read: list[int] = []
    original = identity._digest
    monkeypatch.setattr(
        identity, "_digest", lambda opened, spans: read.extend(n for _, n in spans) or original(opened, spans)
    )
    assert fingerprint_of([file])
    assert sum(read) == 3 * identity.BLOCK


def test_files_of_another_format_count_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(bytes(range(256)) * 5000)
    for limit in (1 << 30, 0):
        monkeypatch.setattr(identity, "WHOLE", limit)
        before = of(tmp_path)
        file.write_bytes(b"x" + file.read_bytes()[1:])
        assert of(tmp_path) != before
        file.write_bytes(bytes(range(256)) * 5000)


def test_no_files_no_fingerprint(tmp_path: Path):
    assert of(tmp_path) is None
    assert of(tmp_path / "nowhere") is None
    assert fingerprint(ModelSource("owner/never-fetched")) is None


def test_a_damaged_header_is_named(copied: Path):
    (copied / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(LmflowError, match=r"model\.safetensors is damaged"):
        of(copied)


def test_a_loaded_model_knows_its_own(model_directory: Path):
    assert Pretrained(path=str(model_directory)).load(LoadRequest()).fingerprint == of(model_directory)


def test_what_is_known_is_compared():
    assert differ("a", "b")
    assert not any(differ(*each) for each in (("a", "a"), (None, "b"), ("a", None)))
    assert combined("a", "b") != combined("b", "a")
    assert combined("a", None) is None


def test_beside_an_adapter(tmp_path: Path):
    assert read_base(tmp_path) is None
    write_base(tmp_path, BaseWeights("/base", "12" * 32))
    assert read_base(tmp_path) == BaseWeights("/base", "12" * 32)
    assert str(read_base(tmp_path)) == "/base (fingerprint 121212121212)"
    for content in ("[", "[]", json.dumps({"path": "x"})):
        (tmp_path / "base_weights.json").write_text(content)
        with pytest.raises(LmflowError, match=r"base_weights\.json is damaged"):
            read_base(tmp_path)
