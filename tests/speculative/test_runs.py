"""The inferencer in whole runs: RAFT samples with it, unchanged."""

from __future__ import annotations

import json

import pytest

from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import resolve
from lmflow.recipe.settings import Origin, Setting
from lmflow.run.run import run

SMALL = {
    "model": "demo",
    "tuner": "lora",
    "aligner": "raft",
    "aligner.iterations": 1,
    "aligner.prompts": 8,
    "aligner.samples": 4,
    "aligner.heldout_prompts": 8,
    "aligner.max_new_tokens": 16,
    "inferencer": "speculative",
}


@pytest.mark.parametrize(
    "extra", [{}, {"inferencer.draft": "demo", "inferencer.draft_length": 3}], ids=["lookup", "draft"]
)
def test_raft_samples_with_it(tmp_path, extra):
    plugins = load_plugins()
    settings = [Setting(path, value, Origin("option", f"--{path}")) for path, value in (SMALL | extra).items()]
    resolved = resolve(plugins, None, settings)
    result = run(resolved, plugins, output=tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert result.record["status"] == "completed"
    assert metrics["tokens_per_target_pass"] > 1
    assert 0 < metrics["acceptance_rate"] <= 1
    assert (metrics["draft_passes"] > 0) == bool(extra)
    assert list((tmp_path / "run" / "samples").iterdir())
    assert "speculative" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_the_core_names_no_speculation():
    from pathlib import Path

    import lmflow

    sources = Path(next(iter(lmflow.__path__))).rglob("*.py")
    assert [path for path in sources if "speculat" in path.read_text().lower()] == []
