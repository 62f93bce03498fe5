"""A real model on real records: SmolLM2-135M, LoRA, SFT on Alpaca records, then RAFT on HH prompts.

    python benchmarks/smollm2.py --alpaca alpaca.json --hh hh.jsonl.gz

Needs the model component `smollm2` (plugins/lmflow-demo/README.md says how) and two files of records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SFT = (
    ("--training.batch_size", "8"),
    ("--training.learning_rate", "2e-4"),
    ("--data.limit", "200"),
    ("--data.max_length", "256"),
)
RAFT = (
    ("--aligner", "raft"),
    ("--reward", "python:polite:short_and_polite"),
    ("--data.limit", "400"),
    ("--aligner.iterations", "2"),
    ("--aligner.prompts", "64"),
    ("--aligner.samples", "4"),
    ("--aligner.max_new_tokens", "48"),
    ("--aligner.heldout_prompts", "16"),
    ("--training.learning_rate", "5e-4"),
)


def run(name: str, data: Path, options: tuple[tuple[str, str], ...], folder: Path) -> dict[str, Any]:
    """One run by the command; returns its run.json."""
    command = [sys.executable, "-m", "lmflow", "run", "--model", "smollm2", "--tuner", "lora"]
    command += ["--training.precision", "bf16", "--data.path", str(data.resolve()), "--output", str(folder / name)]
    command += ["--json", *(word for option in options for word in option)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.resolve())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def row(what: str, record: dict[str, Any], metric: str) -> str:
    """A line of the table."""
    metrics, seconds = record["metrics"], record["seconds"]
    before, after = metrics[f"{metric}_before"], metrics[f"{metric}_after"]
    return (
        f"| {what} | {metric} | {before:.3f} | {after:.3f} | {metrics['generic_loss_before']:.3f} | "
        f"{metrics['generic_loss_after']:.3f} | {record['wall_seconds']:.0f} | {seconds.get('training', 0):.0f} | "
        f"{seconds.get('sampling', 0):.0f} | {record['peak_memory_bytes'] / 1e9:.1f} |"
    )


def main() -> None:
    """Run both and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpaca", type=Path, required=True, help="Alpaca records")
    parser.add_argument("--hh", type=Path, required=True, help="HH-RLHF records")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        sft = run("sft", arguments.alpaca, SFT, folder)
        raft = run("raft", arguments.hh, RAFT, folder)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    lines = [
        "# SmolLM2-135M-Instruct, LoRA, bfloat16",
        "",
        f"Measured on {os.cpu_count()} cores ({platform.machine()}, OMP_NUM_THREADS={threads}), torch "
        f"{sft['versions']['torch']}, by benchmarks/smollm2.py. Seconds are wall-clock.",
        "",
        "| run | metric | before | after | generic loss | after | whole run, s | training | sampling | peak GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        row("SFT, 200 Alpaca records, one epoch", sft, "eval_loss"),
        row("RAFT, 2 iterations on HH prompts, reward polite.py", raft, "heldout_reward"),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
