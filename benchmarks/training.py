"""Training speed and memory beside trl, transformers' Trainer and LLaMA-Factory, in alternating processes.

    python benchmarks/training.py [--data alpaca_en_demo.json]

The peers come from the package index into environments of their own below .bench/, unless those are there. All sides
get the same weights, the same tokens with the same targets, and the same number of samples a step. One thread and the
processor's time, because the clock of a shared machine is not to be relied on; the least of several rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_models import make_model, make_tokenizer, read_dialogues, write_dialogues

HERE = Path(__file__).parent
ROOT = HERE.parent
UV = ROOT / ".bootstrap" / "bin" / "uv"
RESULT = HERE / "results" / "training.md"
SAMPLES: Mapping[str, int] = {"6M": 64, "28M": 32}
"""Samples of each shape: few, because every side goes through them in every round."""
BATCH, RATE, STILL = 16, 1e-4, 1e-30
AGREEMENT = 0.005
"""Largest relative difference of the mean losses of weights that stand still: the means are taken over steps."""
PACKAGES: Mapping[str, Sequence[str]] = {
    "trl": ("trl", "peft"),
    "llamafactory": ("llamafactory", "torch<2.12", "torchaudio<2.12", "torchvision"),
}
"""What is installed for each peer: LLaMA-Factory loads torchaudio, which is built for one torch alone."""


@dataclass(frozen=True)
class Side:
    """One row of the table."""

    name: str
    toolkit: str
    environment: str
    packed: bool = False


SIDES = (
    Side("lmflow, packed", "lmflow", "", packed=True),
    Side("lmflow", "lmflow", ""),
    Side("trl SFTTrainer, packed", "trl", "trl", packed=True),
    Side("trl SFTTrainer", "trl", "trl"),
    Side("transformers Trainer", "transformers", "trl"),
    Side("LLaMA-Factory", "llamafactory", "llamafactory"),
)
Found = dict[tuple[str, bool, Side], list[dict[str, float]]]


def main() -> None:
    """Measure every side in turn, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default=",".join(SAMPLES))
    given = parser.parse_args()
    for name in PACKAGES:
        install(name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dialogues = read_dialogues(given.data, 1000)
        tokenizer = make_tokenizer(dialogues)
        shapes = {shape: make_model(shape, tokenizer, place / shape) for shape in given.shapes.split(",")}
        for shape in shapes:
            write_dialogues(dialogues[: SAMPLES[shape]], place / f"{shape}.dialogues")
            write_tokens(place / shape, place / f"{shape}.dialogues", place / f"{shape}.tokens")
        still = {side: measure(side, place, next(iter(shapes)), lora=False, rate=STILL)["loss"] for side in SIDES}
        check_same_work(still)
        found: Found = {}
        for _ in range(given.rounds):
            for shape in shapes:
                for lora in (False, True):
                    for side in SIDES:
                        taken = measure(side, place, shape, lora=lora, rate=RATE)
                        found.setdefault((shape, lora, side), []).append(taken)
                        sys.stderr.write(f"{shape} {'lora' if lora else 'full'} {side.name}: {json.dumps(taken)}\n")
    RESULT.write_text(page(found, shapes, still, given.data, given.rounds), encoding="utf-8")
    sys.stdout.write(RESULT.read_text(encoding="utf-8"))


def install(name: str) -> None:
    """Make a peer's environment where there is none."""
    place = ROOT / ".bench" / name
    if (place / "complete").exists():
        return
    # pip takes more than a quarter of an hour to find out which versions of LLaMA-Factory's requirements agree.
    subprocess.run([str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
    subprocess.run([str(UV), "pip", "install", "--quiet", "--python", str(place), *PACKAGES[name]], check=True)
    (place / "complete").touch()


def write_tokens(model: Path, dialogues: Path, tokens: Path) -> None:
    """What all sides train on: token ids, and which of them are targets."""
    from lmflow.components import LoadRequest
    from lmflow.data.dataset import read_samples
    from lmflow.data.formats import FORMATS, Formats
    from lmflow.models.pretrained import Pretrained
    from lmflow.recipe.sections.data import Reading

    skeleton = Pretrained(path=str(model)).skeleton(LoadRequest())
    samples = list(read_samples(Reading(path=str(dialogues)), Formats(FORMATS)))
    with tokens.open("w", encoding="utf-8") as file:
        for sequences in skeleton.encode_all(samples):
            for each in sequences:
                file.write(json.dumps({"ids": list(each.ids), "trained": list(map(bool, each.loss_mask))}) + "\n")


def measure(side: Side, place: Path, shape: str, *, lora: bool, rate: float) -> dict[str, float]:
    """What one process took."""
    python = ROOT / ".bench" / side.environment / "bin" / "python" if side.environment else Path(sys.executable)
    given = {
        "side": side.toolkit,
        "model": str(place / shape),
        "tokens": str(place / f"{shape}.tokens"),
        "lora": lora,
        "packed": side.packed,
        "batch": BATCH,
        "rate": rate,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(HERE / "training_side.py"), json.dumps(given)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side.name} failed:\n{done.stderr[-3000:]}")
    taken: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return taken


def check_same_work(losses: Mapping[Side, float]) -> None:
    """Exit where a side finds another loss on the same weights: it would be doing other work."""
    expected = losses[SIDES[0]]
    for side, loss in losses.items():
        if abs(loss - expected) > AGREEMENT * expected:
            sys.exit(f"{side.name} finds a mean loss of {loss:.4f} where {SIDES[0].name} finds {expected:.4f}")


def page(found: Found, shapes: Mapping[str, int], still: Mapping[Side, float], data: Path | None, rounds: int) -> str:
    """The page of results."""
    what = data.name if data else "generated dialogues"
    sections = [
        line
        for shape, count in shapes.items()
        for lora in (False, True)
        for line in section(found, shape, count, lora=lora)
    ]
    versions = "; ".join(
        f"{name or 'lmflow'} with {versions_in(name)}" for name in dict.fromkeys(s.environment for s in SIDES)
    )
    return "\n".join(
        [
            "# Training",
            "",
            f"Llama shapes with random weights and a vocabulary of 8,000, on {what}: the same tokens and targets",
            f"for every side, {BATCH} samples a step, float32, AdamW, one thread of a {platform.machine()} processor.",
            f"Seconds are the processor's, the least of {rounds} alternating processes; rely on ratios only. Tokens",
            "are real ones, without padding. Packed rows hold 1,024. *Memory* is the highest resident size of the",
            "process, with all its libraries.",
            "",
            *sections,
            "All sides find the same loss on weights that stand still, so they do the same work: "
            + ", ".join(f"{side.name} {loss:.3f}" for side, loss in still.items())
            + " nats (means over steps, which differ by how samples fall into them).",
            "",
            f"Versions: {versions}.",
            "",
            "Measured by `make bench` (`python benchmarks/training.py --data alpaca_en_demo.json`).",
            "",
        ]
    )


def section(found: Found, shape: str, parameters: int, *, lora: bool) -> list[str]:
    """The table of one shape and tuner."""
    best = {side: min(found[shape, lora, side], key=lambda taken: taken["seconds"]) for side in SIDES}
    ours = best[SIDES[0]]["seconds"]
    rows = [
        f"| {side.name} | {taken['tokens'] / taken['seconds']:,.0f} | {taken['seconds'] / ours:.2f} "
        f"| {taken['peak'] / 1e6:,.0f} |"
        for side, taken in best.items()
    ]
    tokens = f"{best[SIDES[0]]['tokens']:,} tokens in {SAMPLES[shape]} samples"
    return [
        f"## {parameters:,} parameters, {'LoRA of rank 8' if lora else 'all trained'}; {tokens}",
        "",
        "| | tokens / s | time, times ours | memory, MB |",
        "|---|---:|---:|---:|",
        *rows,
        "",
    ]


def versions_in(environment: str) -> str:
    """The versions of an environment's packages that matter here."""
    python = ROOT / ".bench" / environment / "bin" / "python" if environment else Path(sys.executable)
    names: Sequence[Any] = ["torch", "transformers", "peft", *([environment] if environment else [])]
    code = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {names!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
