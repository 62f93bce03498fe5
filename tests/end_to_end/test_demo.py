"""The main job: `lmflow run --tuner lora --aligner raft` on the embedded model and tasks."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = [
    "--aligner.iterations",
    "1",
    "--aligner.prompts",
    "8",
    "--aligner.samples",
    "2",
    "--aligner.heldout_prompts",
    "4",
]


def test_the_run_and_everything_it_leaves(lmflow, tmp_path: Path, metrics):
    done = lmflow("run", "--tuner", "lora", "--aligner", "raft", "--output", "out", "--json", *SMALL)
    assert done.code == 0, done.err
    record = done.record
    assert record["status"] == "completed"
    out = tmp_path / "out"
    names = {entry.name for entry in out.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "samples", "checkpoints", "adapter", "report.html"} <= names
    on_disk = json.loads((out / "run.json").read_text())
    assert on_disk["status"] == "completed"
    assert {"torch", "transformers", "peft", "lmflow"} <= on_disk["versions"].keys()
    assert {
        "heldout_reward_before",
        "heldout_reward_after",
        "heldout_accuracy_before",
        "heldout_accuracy_after",
        "eval_loss_before",
        "eval_loss_after",
        "generic_loss_before",
        "generic_loss_after",
        "tokens",
        "tokens_per_second",
        "kl",
    } <= on_disk["metrics"].keys()
    assert on_disk["wall_seconds"] > 0
    assert on_disk["peak_memory_bytes"] > 1e7
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["tuner"]["name"] == "lora"
    assert recipe["aligner"] | {"name": "raft", "prompts": 8, "samples": 2} == recipe["aligner"]
    samples = [json.loads(line) for line in (out / "samples" / "iteration-0001.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    assert sum(row["kept"] for row in samples) == 8
    page = (out / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?:""", page)

    # The adapter is PEFT's, and merging it keeps its logits.
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    adapted = AutoPeftModelForCausalLM.from_pretrained(out / "adapter", dtype=torch.float32)
    with torch.no_grad():
        expected = adapted(ids).logits
    merged = lmflow("export", "merge", "out", "--output", "merged")
    assert merged.code == 0, merged.err
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")(ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template

    # The recipe written repeats the run: the same file, the same losses.
    again = lmflow("run", "out/recipe.yaml", "--output", "again", "--json")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / "recipe.yaml").read_text() == (out / "recipe.yaml").read_text()
    pick = [[m["loss"] for m in metrics(d) if "loss" in m] for d in (out, tmp_path / "again")]
    assert pick[0] == pick[1]

    # The result is a model like any other: training goes on from it.
    chained = lmflow(
        "run", "--model", "out", "--training.max_steps", "1", "--tuner", "lora", "--output", "next", "--json"
    )
    assert chained.code == 0, chained.err


def test_what_the_user_sees(installed_lmflow):
    done = installed_lmflow("run", "--tuner", "lora", "--aligner", "raft", "--output", "out", *SMALL)
    assert done.code == 0, done.err
    shown = done.out + done.err
    for expected in ("reward", "accuracy", "memory", "out/report.html", "out/adapter", "lmflow export merge"):
        assert expected in shown, shown
    for unwanted in ("Traceback", "Warning", "[WARNING]", "DeepSpeed", "accelerator.py"):  # DeepSpeed, where it is here
        assert unwanted not in shown, shown


def test_quiet(lmflow):
    done = lmflow("run", "--tuner", "lora", "--aligner", "raft", "--output", "out", "--quiet", *SMALL)
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_lifts_the_held_out_reward(seed: int, lmflow, tmp_path: Path):
    """The promise on the README's first screen, with the defaults."""
    done = lmflow(
        "run", "--tuner", "lora", "--aligner", "raft", "--training.seed", str(seed), "--output", "out", "--json"
    )
    assert done.code == 0, done.err
    figures = done.record["metrics"]
    assert figures["heldout_reward_after"] - figures["heldout_reward_before"] >= 0.2
    assert figures["heldout_accuracy_after"] > figures["heldout_accuracy_before"]
