"""What `lmflow plan` estimates beside what a run then takes at its peak, for each shape, tuner and way of batching.

    python benchmarks/plan.py [--data alpaca_en_demo.json]

The C library is told to return what is freed (MALLOC_MMAP_THRESHOLD_), so that the resident peak is what was in use at
one time; each run is made once more without that, to show how much its heap keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_models import make_model, make_tokenizer, read_dialogues, write_dialogues

RESULT = Path(__file__).parent / "results" / "plan.md"
SAMPLES = 1000
CASES: Mapping[str, str] = {
    "padded, 8 samples": "--training.batch_size 8",
    "packed to 1,024, 64 samples": "--data.packing --data.max_length 1024 --training.batch_size 64",
    "one pass of 16": "--training.batch_size 16 --training.micro_batch_size 16",
    "one pass of 32, recomputed": "--training.batch_size 32 --training.micro_batch_size 32 "
    "--training.gradient_checkpointing",
    "bf16, 8 samples": "--training.batch_size 8 --training.precision bf16",
}


def main() -> None:
    """Measure every case, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shapes", default="6M,28M")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dialogues = read_dialogues(given.data, SAMPLES)
        write_dialogues(dialogues, place / "dialogues.jsonl")
        tokenizer = make_tokenizer(dialogues)
        rows = []
        for shape in given.shapes.split(","):
            make_model(shape, tokenizer, place / shape)
            rows += list(measure_all(place, shape))
    RESULT.write_text(page(rows, given.data), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def measure_all(place: Path, shape: str) -> Iterator[str]:
    """A row of the table for each tuner and case."""
    for tuner in ("full", "lora"):
        for name, options in CASES.items():
            record = measure(place, shape, tuner, options, returning=True)
            kept = measure(place, shape, tuner, options, returning=False)["peak_memory_bytes"]
            estimated, peak = record["plan"]["memory_total"], record["peak_memory_bytes"]
            parts = ", ".join(f"{part} {count / 1e6:.0f}" for part, count in record["plan"]["memory"].items())
            row = f"| {shape} {tuner}, {name} | {estimated / 1e6:,.0f} | {peak / 1e6:,.0f} | {estimated / peak:.2f} "
            row += f"| {kept / 1e6:,.0f} | {parts} |"
            sys.stderr.write(f"{row}\n")
            yield row


def measure(place: Path, shape: str, tuner: str, options: str, *, returning: bool) -> dict[str, Any]:
    """run.json of a run of four steps."""
    command = [sys.executable, "-m", "lmflow", "run", "--model.path", str(place / shape), "--tuner", tuner]
    command += ["--data.path", str(place / "dialogues.jsonl"), "--data.validation", "0.02", "--training.max_steps", "4"]
    command += [
        "--aligner.heldout_prompts",
        "0",
        *options.split(),
        "--output",
        str(place / "run"),
        "--overwrite",
        "--json",
    ]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if returning else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def page(rows: list[str], data: Path | None) -> str:
    """The page of results."""
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
    machine += ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    what = data.name if data else "generated dialogues"
    return "\n".join(
        [
            "# What lmflow plan estimates, and what a run takes",
            "",
            f"By `python benchmarks/plan.py` on {machine}; {SAMPLES:,} dialogues of {what},",
            "four steps. Memory in MB: the highest resident size of the whole process on the CPU, with all libraries.",
            "*Estimated* is what `lmflow plan` says with the same options, *taken* the peak where glibc",
            "returns freed memory at once (`MALLOC_MMAP_THRESHOLD_=1048576`), *with a heap* the peak as it comes: it",
            "keeps freed blocks for the next, which is faster, and says nothing of what the run needs.",
            "",
            "| case | estimated | taken | ratio | with a heap | parts estimated |",
            "|---|---:|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
