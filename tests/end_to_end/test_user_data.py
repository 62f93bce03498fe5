"""The same commands on the user's own model and data, and on the real records where they are at hand."""

import json
from pathlib import Path

import pytest

from lmflow.components import GenerateRequest, LoadRequest

ALPACA = [
    {"instruction": f"Say the word {word}.", "input": "", "output": f"{word}!"}
    for word in ("tree", "river", "stone", "cloud", "lamp", "paper", "music", "winter", "garden", "silver")
]


@pytest.fixture
def alpaca(tmp_path: Path) -> str:
    (tmp_path / "alpaca.json").write_text(json.dumps(ALPACA))
    return "alpaca.json"


def test_sft_on_own_model_and_data(lmflow, alpaca: str, model_directory: Path, tmp_path: Path, metrics):
    done = lmflow(
        "run",
        "--tuner",
        "lora",
        "--model.path",
        str(model_directory),
        "--data.path",
        alpaca,
        "--data.validation",
        "0.2",
        "--training.epochs",
        "5",
        "--output",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.record["data"]["format"] == "alpaca"
    assert done.record["metrics"]["eval_loss_after"] < done.record["metrics"]["eval_loss_before"]
    losses = [m["loss"] for m in metrics(tmp_path / "out") if "loss" in m]
    assert losses[-1] < losses[0]


def test_raft_with_own_reward(lmflow, model_directory: Path, tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(10)))
    (tmp_path / "mine.py").write_text(
        "def short(prompts, completions, records):\n    return [-len(c) for c in completions]\n"
    )
    done = lmflow(
        "run",
        "--tuner",
        "lora",
        "--aligner",
        "raft",
        "--model.path",
        str(model_directory),
        "--data.path",
        "prompts.jsonl",
        "--reward.name",
        "python:mine:short",
        "--aligner.iterations",
        "1",
        "--aligner.max_new_tokens",
        "8",
        "--output",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert "heldout_reward_after" in done.record["metrics"]
    assert "heldout_accuracy_after" not in done.record["metrics"]


def test_a_length_beyond_the_model_s_context_is_told(lmflow, alpaca: str, model_directory: Path):
    few = ("--data.limit", "8", "--training.max_steps", "1", "--data.max_length")
    call = ("run", "--model.path", str(model_directory), "--data.path", alpaca, *few)
    told = "data.max_length 2,048 is more than the model's context, which is the limit: 256"
    assert told in lmflow(*call, "2048", "--output", "long").err
    assert "the limit" not in lmflow(*call, "200", "--output", "short").err


def test_full_tuner_writes_a_whole_model(lmflow, alpaca: str, model_directory: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    done = lmflow(
        "run",
        "--model",
        str(model_directory),
        "--data.path",
        alpaca,
        "--training.max_steps",
        "2",
        "--output",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")


def test_a_learnt_answer_ends(lmflow, model_directory: Path, tmp_path: Path):
    """The end of the answer is trained too: a model that has learnt one record says it and stops."""
    from lmflow.data.sample import Message, Sample
    from lmflow.inference.hf import HuggingFace
    from lmflow.inference.types import Sampling
    from lmflow.models.pretrained import Pretrained

    (tmp_path / "one.json").write_text('[{"instruction": "Who?", "input": "", "output": "the lazy dog"}]')
    done = lmflow(
        "run",
        "--model",
        str(model_directory),
        "--data.path",
        "one.json",
        "--data.validation",
        "0",
        "--training.max_steps",
        "60",
        "--training.learning_rate",
        "1e-2",
        "--output",
        "out",
        "--quiet",
    )
    assert done.code == 0, done.err
    model = Pretrained(path=str(tmp_path / "out" / "model")).load(LoadRequest())
    prompt = model.encode_prompt(Sample((Message("user", "Who?"),)))
    [[answer]] = HuggingFace().generate(GenerateRequest(model, [prompt], Sampling(temperature=0.0, max_new_tokens=50)))
    assert answer.text == "the lazy dog"
    assert answer.finish_reason == "eos"


def test_continual_pretraining_on_plain_text(lmflow, model_directory: Path, tmp_path: Path):
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    done = lmflow(
        "run",
        "--model",
        str(model_directory),
        "--data.path",
        "book.txt",
        "--data.max_length",
        "64",
        "--data.packing",
        "--data.validation",
        "book.txt",
        "--training.learning_rate",
        "1e-3",
        "--output",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.record["metrics"]["eval_loss_after"] < done.record["metrics"]["eval_loss_before"]


def test_no_trained_token_is_refused_with_the_records_named(lmflow, model_directory: Path, tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    done = lmflow("run", "--model", str(model_directory), "--data.path", "prompts.jsonl", "--data.validation", "0")
    assert done.code == 2
    assert "prompts.jsonl:1" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_sft_on_real_alpaca_records(lmflow, shared_data: Path, tmp_path: Path, metrics):
    """Held-out loss falls on the embedded model, and the same seed gives the same losses twice."""
    for name in ("a", "b"):
        done = lmflow(
            "run",
            "--tuner",
            "lora",
            "--data.path",
            str(shared_data / "alpaca_en_demo.json"),
            "--data.limit",
            "80",
            "--training.learning_rate",
            "1e-3",
            "--output",
            name,
            "--json",
        )
        assert done.code == 0, done.err
        assert done.record["metrics"]["eval_loss_after"] < done.record["metrics"]["eval_loss_before"]
    first, second = ([m["loss"] for m in metrics(tmp_path / name) if "loss" in m] for name in ("a", "b"))
    assert first == second


@pytest.mark.slow
def test_raft_on_real_prompts(lmflow, shared_data: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def polite(prompts, completions, records):\n"
        "    assert all('chosen' in record for record in records)\n"
        "    return [('please' in c) - len(c) / 100 for c in completions]\n"
    )
    done = lmflow(
        "run",
        "--tuner",
        "lora",
        "--aligner",
        "raft",
        "--data.path",
        str(shared_data / "hh_rlhf_harmless_test.jsonl.gz"),
        "--data.limit",
        "200",
        "--reward",
        "python:mine:polite",
        "--aligner.iterations",
        "2",
        "--aligner.prompts",
        "32",
        "--aligner.samples",
        "4",
        "--aligner.max_new_tokens",
        "24",
        "--output",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.record["data"]["format"] == "hh"
    figures = done.record["metrics"]
    assert figures["heldout_reward_after"] > figures["heldout_reward_before"]
