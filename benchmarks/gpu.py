"""Model-FLOPs utilisation on a GPU: Llama shapes of 1B and 7B, LoRA and full, beside trl; and 7B within 24 GB.

    python benchmarks/gpu.py [--peer PYTHON_WITH_TRL] [--peak TFLOPS]

Weights are random and made on the GPU, in bfloat16 where they do not train; sequences are full, so that no side gains
by packing. Utilisation counts the operations that the mathematics takes (Chowdhery et al., 2022, appendix B), not
those of recomputing; training LoRA takes no gradients of the frozen matrices. A case that does not fit says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_models import SHAPES

HERE = Path(__file__).parent
RESULT = HERE / "results" / "gpu.md"
PEAKS: Mapping[str, float] = {"H100": 989, "H200": 989, "A100": 312, "4090": 165, "L40": 181, "B200": 2250}
"""Dense bfloat16 operations per second, in units of 10^12, from the data sheets, by a part of the GPU's name."""


@dataclass(frozen=True)
class Case:
    """One training to measure."""

    name: str
    shape: str
    lora: bool
    rows: int
    """Sequences of a forward pass; a step has two passes."""
    length: int = 2048
    recompute: bool = False
    budget: float | None = None
    """Gigabytes the process may take; None for all there are."""


CASES = (
    Case("1B, full", "1B", lora=False, rows=4),
    Case("1B, LoRA", "1B", lora=True, rows=8),
    Case("7B, LoRA", "7B", lora=True, rows=2),
    Case("7B, LoRA, activations recomputed", "7B", lora=True, rows=8, recompute=True),
    Case("7B, LoRA, within 24 GB", "7B", lora=True, rows=1, recompute=True, budget=24),
    Case("7B, full, activations recomputed", "7B", lora=False, rows=4, recompute=True),
)


def main() -> None:
    """Measure the cases by turns and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, help="Python of an environment with trl and peft")
    parser.add_argument("--peak", type=float, help="the GPU's 10^12 dense bfloat16 operations a second")
    parser.add_argument("--cases", default="", help="only those whose name holds this")
    parser.add_argument("--try-on-cpu", action="store_true", help="a small shape, to see that this script works")
    given = parser.parse_args()
    if given.try_on_cpu:
        cases: Sequence[Case] = [Case("6M, LoRA", "6M", lora=True, rows=1, length=64, recompute=True)]
    else:
        cases = [case for case in CASES if given.cases in case.name]
    sides = {"lmflow": Path(sys.executable)} | ({"trl": given.peer} if given.peer else {})
    found: list[tuple[Case, str, dict[str, Any]]] = []
    for case in cases:
        for side, python in sides.items():
            taken = measure(python, side, case, on_cpu=given.try_on_cpu)
            found.append((case, side, taken))
            sys.stderr.write(f"{case.name}, {side}: {json.dumps(taken)}\n")
    text = page(found, given.peak)
    if not given.try_on_cpu:
        RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def measure(python: Path, side: str, case: Case, *, on_cpu: bool) -> dict[str, Any]:
    """What one process took, or why it took nothing."""
    given = {"side": side, "device": "cpu" if on_cpu else "cuda", "config": SHAPES[case.shape], **asdict(case)}
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    command = [str(python), str(HERE / "gpu_side.py"), json.dumps(given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        return {"failure": "out of memory" if "OutOfMemory" in done.stderr else last[:200]}
    taken: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return taken


def operations_per_token(case: Case, taken: Mapping[str, Any]) -> float:
    """Floating-point operations that a trained token takes, forward and backward.

    A matrix takes two per weight going forward, two for the gradient of its input, and two for its own where it trains;
    attention 12 per layer, dimension and token of context, of which the causal half is counted.
    """
    shape = SHAPES[case.shape]
    frozen = taken["matrices"] - taken["trained"]
    attention = 12 * shape["num_hidden_layers"] * shape["hidden_size"] * case.length / 2
    return float(6 * taken["trained"] + 4 * frozen + attention)


def page(found: Sequence[tuple[Case, str, Mapping[str, Any]]], peak: float | None) -> str:
    """The page of results."""
    device = next((taken["device"] for _, _, taken in found if "device" in taken), "no device")
    peak = peak or next((value for name, value in PEAKS.items() if name in device), None)
    rows = []
    for case, side, taken in found:
        start = f"| {case.name} | {case.rows} x {case.length:,} | {side} |"
        if "failure" in taken:
            rows.append(f"{start} {taken['failure']} | | |")
            continue
        speed = taken["tokens_per_second"]
        share = f"{speed * operations_per_token(case, taken) / (peak * 1e12):.1%}" if peak else "peak not known"
        rows.append(f"{start} {speed:,.0f} | {share} | {taken['peak'] / 1e9:,.1f} |")
    versions = dict.fromkeys(f"{side}: {taken['versions']}" for _, side, taken in found if "versions" in taken)
    return "\n".join(
        [
            "# Training on a GPU",
            "",
            f"Llama shapes with random weights on one {device}, bfloat16, full sequences, two forward passes a step;",
            "the median of the steps after the third. Utilisation is of the "
            + (f"{peak:,.0f} x 10^12 dense bfloat16 operations" if peak else "operations")
            + " a second that the data sheet gives.",
            "Memory is the most that torch reserved.",
            "",
            "| case | rows of a pass | | tokens / s | utilisation | memory, GB |",
            "|---|---|---|---:|---:|---:|",
            *rows,
            "",
            f"Versions: {'; '.join(versions)}.",
            "",
            "Measured by `python benchmarks/gpu.py --peer PYTHON_WITH_TRL`.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
