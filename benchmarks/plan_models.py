"""What `lmflow plan` foresees of a teacher's and a reference's passes beside what they hold at their peak.

    python benchmarks/plan_models.py

Peaks are those of torch's profiler, which sees every allocation of the CPU come and go: bytes held at once beside the
weights. The teacher is asked in each micro-batch of a step (`target_states`, `target_map`, the divergence of both
models, the backward pass); the reference is asked before the first step (`token_logprobs`, over the bound of tokens).
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM

from lmflow.data.collate import collate
from lmflow.data.sample import TokenSequence
from lmflow.models.language_model import LanguageModel
from lmflow.planning.footprint import StepSettings, predict_footprint, predict_other
from lmflow.planning.passes import largest_scoring
from lmflow.training.distributions import kl_divergence
from lmflow.training.loss import target_map, target_states, token_logprobs
from lmflow.training.output_head import output_head

RESULT = Path(__file__).parent / "results" / "plan_models.md"
STUDENT = (128, 4)
TEACHERS = ((128, 4), (256, 6), (512, 6))
VOCABULARIES = (500, 8000)


def main() -> None:
    """Measure every pair of models, and write the table."""
    torch.set_num_threads(1)
    rows = [row for vocabulary in VOCABULARIES for sizes in TEACHERS for row in measure(sizes, vocabulary)]
    RESULT.write_text(page(rows), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def make(hidden: int, layers: int, vocabulary: int) -> Any:
    """A Llama of random weights."""
    sizes = {"hidden_size": hidden, "intermediate_size": 5 * hidden // 2, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=vocabulary, pad_token_id=0))


def sequences(count: int, longest: int) -> list[TokenSequence]:
    """Sequences of several lengths, two thirds of each targets."""
    lengths = [longest - 7 * (i % 5) for i in range(count)]
    return [TokenSequence([1 + i % 400 for i in range(n)], [i > n // 3 for i in range(n)]) for n in lengths]


def measure(sizes: tuple[int, int], vocabulary: int) -> Iterator[str]:
    """Rows of the table: a step with this teacher, its pass alone, and the passes of it as a reference."""
    student, teacher = make(*STUDENT, vocabulary).train(), make(*sizes, vocabulary).eval().requires_grad_(False)
    output_head(teacher), output_head(student)
    batch, setting = collate(sequences(8, 300), 0), StepSettings()

    def distil() -> None:
        student.zero_grad()
        states, head = target_states(teacher, batch)

        def compare(ours: Tensor, theirs: Tensor) -> Tensor:
            return kl_divergence(head(theirs), ours)

        target_map(student, student, batch, compare, states).sum().backward()

    name = f"{sizes[0]} x {sizes[1]}, vocabulary {vocabulary:,}"
    step = predict_footprint(student, batch, setting, [teacher])
    yield row(f"step with a teacher, {name}", step.gradients + step.activations + step.logits, peak(distil))
    model = LanguageModel(teacher, SimpleNamespace(pad_token_id=0, eos_token_id=0), "reference")
    scored = sequences(40, 300)
    found = predict_other(student, teacher, largest_scoring(model, scored), setting)
    yield row(f"reference, {name}", found.activations + found.logits, peak(lambda: token_logprobs(model, scored)))


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that `work` held at once, beside what was there."""
    work()
    with profile(profile_memory=True) as seen:
        work()
    events: Any = seen.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def row(name: str, foreseen: int, taken: int) -> str:
    """A row of the table."""
    return f"| {name} | {foreseen / 1e6:,.1f} | {taken / 1e6:,.1f} | {foreseen / taken:.2f} |"


def page(rows: list[str]) -> str:
    """The page of results."""
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
    machine += ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    lines = [
        "# What lmflow plan foresees of further models, and what they take",
        "",
        f"By `python benchmarks/plan_models.py` on {machine}. MB held at the peak beside the weights, as torch's",
        f"profiler saw them on the CPU in float32; the student is a Llama of {STUDENT[0]} x {STUDENT[1]}.",
        "",
        "| case | foreseen | taken | ratio |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
