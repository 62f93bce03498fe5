"""Whole runs with a context: every tuner and aligner, what is saved, and what plain Transformers makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lmflow.builtin.merge import Merge
from lmflow.components import LoadRequest
from lmflow.plugins import load_plugins
from lmflow.recipe.resolve import model_from_reference, resolve
from lmflow.run.export import export
from lmflow.run.run import RunResult, run
from lmflow.testing.runs import as_options

IDS = torch.arange(5, 205)[None]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [{"prompt": f"{n} quick brown foxes jump over", "answer": "the lazy dog " * 6 * n} for n in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def carry_out(model_directory: Path, texts: Path, tmp_path: Path) -> Any:
    def carry(**options: str) -> RunResult:
        values = {
            "model": str(model_directory),
            "data__path": str(texts),
            "data__validation": "0.25",
            "training__max_steps": "2",
            "training__batch_size": "2",
            "training__learning_rate": "0.02",
            "aligner__max_new_tokens": "4",
            "aligner__heldout_prompts": "1",
        } | options
        plugins = load_plugins()
        return run(resolve(plugins, None, as_options(**values)), plugins, output=tmp_path / "run")

    return carry


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize("context", ["linear", "ntk", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_a_run_leaves_an_extended_model(context: str, tuner: str, carry_out: Any, tmp_path: Path):
    result = carry_out(context=context, context__factor="4", tuner=tuner)
    assert result.status == "completed"
    plugins = load_plugins()
    ours = model_from_reference(plugins, str(result.directory)).load(LoadRequest())
    assert ours.context_length == 1024
    merged = export(Merge(), plugins, str(result.directory), tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert torch.equal(logits(plain), logits(ours.module))
    rope = plain.config.rope_parameters
    assert rope["rope_type"] == ("default" if context == "ntk" else context)
    assert (rope["rope_theta"] > 10_000) == (context == "ntk")
    if tuner == "lora":
        assert json.loads((result.directory / "adapter" / "base_config.json").read_text())["rope_parameters"] == rope


def test_raft_composes(carry_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "variety.py").write_text(
        "def score(prompts, completions, records):\n    return [float(len(set(text))) for text in completions]\n"
    )
    result = carry_out(
        context="yarn",
        context__length="512",
        tuner="lora",
        aligner="raft",
        aligner__iterations="1",
        reward="python:variety:score",
    )
    assert result.status == "completed"
    assert model_from_reference(load_plugins(), str(result.directory)).load(LoadRequest()).context_length == 512


def test_data_shorter_than_the_context_is_said(carry_out: Any):
    notes = carry_out(context="linear", context__factor="4").record["notes"]
    [note] = [each for each in notes if "the context linear reaches 1,024 tokens" in each]
    assert "positions beyond are not trained" in note


def test_data_as_long_as_the_context_is_not(carry_out: Any, tmp_path: Path):
    (tmp_path / "long.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "held.txt").write_text("the lazy dog jumps over the quick brown fox. " * 20)
    result = carry_out(
        context="linear",
        context__factor="2",
        data__path=str(tmp_path / "long.txt"),
        data__validation=str(tmp_path / "held.txt"),
    )
    assert not [each for each in result.record["notes"] if "positions beyond" in each]


def test_a_scaled_result_is_not_scaled_again(carry_out: Any):
    from lmflow.errors import LmflowError
    from lmflow_longctx.contexts import Yarn

    result = carry_out(context="yarn", context__factor="4", tuner="lora")
    model = model_from_reference(load_plugins(), str(result.directory))
    with pytest.raises(LmflowError, match="already of type yarn by 4"):
        model.load(LoadRequest(context=Yarn(factor=2)))
