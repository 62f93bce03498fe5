"""`lmflow vocabulary`: more tokens, trained, saved and loaded again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmflow.cli import vocabulary
from lmflow.components import LoadRequest
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained


def test_extended_trained_saved_and_loaded(lmflow: Callable[..., Any], model_directory: Path, tmp_path: Path):
    draw = random.Random(0)
    corpus = [" ".join(draw.choices(["photosynthesis", "chlorophyll", "foxes"], k=12)) for _ in range(60)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(f'{{"text": "{text}"}}\n' for text in corpus))
    done = lmflow("vocabulary", model_directory, "--output", tmp_path / "wide", "--corpus", file, "--pieces", 30)
    assert done.code == 0, done.err
    assert "tokens added" in done.err
    assert "the corpus takes" in done.err
    quick = ("--training.max_steps", 2, "--training.batch_size", 4, "--quiet")
    done = lmflow("run", "--model", tmp_path / "wide", "--data.path", file, "--output", tmp_path / "run", *quick)
    assert done.code == 0, done.err
    again = Pretrained(path=str(tmp_path / "run" / "model")).load(LoadRequest())
    wide = Pretrained(path=str(tmp_path / "wide")).load(LoadRequest())
    assert again.tokenizer.tokenize(corpus[0]) == wide.tokenizer.tokenize(corpus[0])
    assert again.module.get_input_embeddings().weight.shape[0] == len(again.tokenizer)  # type: ignore[operator]
    done = lmflow("vocabulary", model_directory, "--output", tmp_path / "wide", "--add", "<x>")
    assert (done.code, "exists" in done.err) == (2, True)
    done = lmflow("vocabulary", model_directory, "--output", tmp_path / "marked", "--add", "<x>", "--special")
    assert (done.code, "1 token added: '<x>'" in done.err) == (0, True)
    assert not list(tmp_path.glob(".*"))
    done = lmflow("vocabulary", model_directory, "--output", tmp_path / "other")
    assert (done.code, "--add and --corpus: give one of them" in done.err) == (2, True)


def test_whole_or_absent(model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: LanguageModel, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        (directory / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LanguageModel, "save", full)
    with pytest.raises(OSError, match="No space"):
        vocabulary.command(str(model_directory), tmp_path / "wide", add=["<x>"])
    assert list(tmp_path.iterdir()) == []
