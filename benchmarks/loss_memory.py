"""The loss over a vocabulary of 128,000 and 4,096 tokens: in chunks, and by way of all logits.

    python benchmarks/loss_memory.py

Memory is what a process's resident size grew by at its peak, beside the hidden states and the head's weight.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "loss_memory.md"
VOCABULARY, TOKENS, WIDTH, ROUNDS = 128_000, 4_096, 1_024, 2
WAYS = {
    "plain": "all logits, `cross_entropy`",
    "nll": "in chunks, `chunked_nll`",
    "logprobs": "in chunks, `chunked_logprobs`",
}


def main() -> None:
    """Measure each way in turn, check that they agree, and write the table."""
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for way in WAYS:
            found.setdefault(way, []).append(measure(way))
    best = {way: {key: min(each[key] for each in taken) for key in taken[0]} for way, taken in found.items()}
    plain = best["plain"]
    rows = []
    for way, taken in best.items():
        off = max(abs(taken[key] - plain[key]) / abs(plain[key]) for key in ("loss", "hidden", "weight"))
        if off > 1e-5:
            sys.exit(f"{way} differs from the plain loss by {off:.1e} of it")
        rows.append(
            f"| {WAYS[way]} | {taken['memory'] / 1e6:,.0f} | 1/{plain['memory'] / taken['memory']:.1f} "
            f"| {taken['seconds'] / plain['seconds']:.2f} | {f'{off:.0e}' if off >= 1e-7 else '< 1e-7'} |"
        )
    RESULT.write_text(
        "\n".join(
            [
                "# The loss's memory",
                "",
                f"Forward and backward through the output head ({VOCABULARY:,} x {WIDTH:,}) and the cross-entropy of",
                f"{TOKENS:,} tokens, float32, one thread ({platform.machine()}), torch {version('torch')}. *Memory* is",
                "what the process grew by beside the hidden states and the weight: the weight's gradient alone is "
                f"{4 * VOCABULARY * WIDTH / 1e6:,.0f} MB.",
                "*Difference* is the largest of those of the loss and of the two gradients' norms, relative. The least",
                f"of {ROUNDS} alternating processes.",
                "",
                "| | memory, MB | of the plain | time, of the plain | difference |",
                "|---|---:|---:|---:|---:|",
                *rows,
                "",
                "Measured by `python benchmarks/loss_memory.py`.",
                "",
            ]
        ),
        encoding="utf-8",
    )
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def measure(way: str) -> dict[str, float]:
    """What one process found."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, __file__, way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def one(way: str) -> None:
    """Compute the loss and its gradients one way, and say what that took."""
    import torch
    from torch.nn.functional import cross_entropy

    from lmflow.training.chunked_loss import chunked_logprobs, chunked_nll

    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.empty(VOCABULARY, WIDTH).normal_(std=0.05).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    if way == "plain":
        loss = cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    elif way == "nll":
        loss = chunked_nll(hidden, weight, None, targets)
    else:
        loss = -chunked_logprobs(hidden, weight, None, targets).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - started
    assert hidden.grad is not None
    assert weight.grad is not None
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    norms = {"hidden": float(hidden.grad.norm()), "weight": float(weight.grad.norm())}
    sys.stdout.write(json.dumps({"memory": memory, "seconds": seconds, "loss": float(loss.detach()), **norms}))


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
