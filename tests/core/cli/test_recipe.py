"""`lmflow recipe` of a recipe that has stages: shown, explained, and shown again the same."""

from __future__ import annotations

from pathlib import Path

import pytest

STAGES = "training: {seed: 3}\nstages:\n  sft: {tuner: lora}\n  full: {model: stage:sft}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(STAGES)
    return tmp_path / "r.yaml"


def test_stages_are_shown_whole_and_read_as_the_same(lmflow, recipe: Path):
    shown = lmflow("recipe", "show", recipe)
    assert (shown.code, shown.err) == (0, "")
    assert "name: stage:sft" in shown.out
    recipe.write_text(shown.out)
    assert lmflow("recipe", "show", recipe).out == shown.out


def test_every_value_of_a_stage_is_explained(lmflow, recipe: Path):
    words = ["--training.batch_size", "2", "--stages.full.training.max_steps", "5", "--stages.sft.tuner.rslora"]
    explained = lmflow("recipe", "explain", recipe, *words)
    rows = {row.split()[0]: row.split(maxsplit=2)[1:] for row in explained.out.splitlines()}
    assert rows["stages.full.model.name"] == ["stage:sft", f"file {recipe}:4"]
    assert rows["stages.sft.training.seed"] == ["3", f"file {recipe}:1"]
    assert rows["stages.sft.training.batch_size"] == ["2", "option --training.batch_size"]
    assert rows["stages.full.training.max_steps"] == ["5", "option --stages.full.training.max_steps"]
    assert rows["stages.sft.training.max_steps"] == ["none", "default"]
    assert rows["stages.sft.tuner.rslora"] == ["true", "option --stages.sft.tuner.rslora"], "a flag needs no value"
