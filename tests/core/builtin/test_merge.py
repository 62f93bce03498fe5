"""Weights of a run for other tools: complete or absent, and the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lmflow.builtin.merge import Merge
from lmflow.errors import LmflowError
from lmflow.plugins import load_plugins
from lmflow.run.export import export


def logits(directory: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_a_whole_model_is_written_as_it_was(model_directory: Path, tmp_path: Path):
    written = export(Merge(dtype="float32"), load_plugins(), str(model_directory), tmp_path / "out")
    assert torch.equal(logits(written, [5, 6, 7]), logits(model_directory, [5, 6, 7]))
    assert (written / "tokenizer_config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_overwritten(model_directory: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(LmflowError, match="not empty"):
        export(Merge(), load_plugins(), str(model_directory), tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"


def test_a_run_without_a_result_says_how_to_finish_it(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "interrupted"}))
    with pytest.raises(LmflowError, match=r"no result yet .status: interrupted.*--resume"):
        export(Merge(), load_plugins(), str(run), tmp_path / "out")


def test_a_failure_leaves_nothing_behind(model_directory: Path, tmp_path: Path, monkeypatch):
    from lmflow.models.language_model import LanguageModel

    def fail(self: LanguageModel, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LanguageModel, "save", fail)
    with pytest.raises(OSError, match="No space"):
        export(Merge(), load_plugins(), str(model_directory), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
