"""A small Llama trained at 256 tokens, taken to 1,024 by each context: perplexity before and after fine-tuning.

Everything is lmflow's own: the model is trained from nothing by its trainer on Tiny Shakespeare (../shared/data, or
--text; sentences made here where neither is), full rows of 256 bytes at random offsets. Each context is then measured
as it is, and after a short LoRA and a short full fine-tune on rows of 1,024. Perplexity (per byte) is evaluator
perplexity-by-length's: the same held-out bytes are scored at every length, with 256, 512 or 1,024 in the window.

    python benchmarks/long_context.py [--output benchmarks/results/long_context.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lmflow.components import Tuner
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.inference.hf import HuggingFace
from lmflow.journal import Journal
from lmflow.models import LanguageModel
from lmflow.pretrained import Pretrained
from lmflow.training.options import TrainingOptions
from lmflow.training.trainer import Trainer
from lmflow.tuners import Full
from lmflow_longctx.contexts import Dynamic, Linear, Llama3, Ntk, RopeScaling, Yarn
from lmflow_longctx.perplexity import PerplexityByLength
from lmflow_lora.lora import Lora

ROOT = Path(__file__).parent.parent
TEXT = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
SHORT, LONG = 256, 1024
LENGTHS = [256, 512, 1024]
HELD_OUT = 0.1
EVALUATOR = PerplexityByLength(lengths=LENGTHS, stretch=64, windows=48)
CONTEXTS: dict[str, type[RopeScaling] | None] = {
    "none": None,
    "linear": Linear,
    "ntk": Ntk,
    "dynamic": Dynamic,
    "yarn": Yarn,
    "llama3": Llama3,
}


@dataclass(frozen=True)
class Training:
    """One training: `rows` of `length` tokens a step."""

    steps: int
    rows: int
    length: int
    learning_rate: float


BASE = Training(steps=1200, rows=8, length=SHORT, learning_rate=3e-3)
TUNINGS: dict[str, tuple[Tuner, Training]] = {
    "LoRA": (Lora(rank=32, alpha=64), Training(steps=220, rows=1, length=LONG, learning_rate=5e-3)),
    "full": (Full(), Training(steps=220, rows=1, length=LONG, learning_rate=1.5e-3)),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and an end of text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>")


def new_model(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=SHORT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LanguageModel(LlamaForCausalLM(config), tokenizer, "new")


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else make_text()


def make_text(size: int = 1_000_000) -> str:
    """Dialogues of a few speakers who keep to their own words."""
    draw = random.Random(0)
    nouns = ["river", "stone", "lantern", "orchard", "harbour", "winter", "ladder", "mirror", "window", "feather"]
    verbs = ["sees", "keeps", "loses", "paints", "follows", "forgets", "carries", "mends", "finds", "fears"]
    parts: list[str] = []
    written = 0
    while written < size:
        cast = {name: draw.sample(nouns, 3) for name in draw.sample(["ANNA", "BRUNO", "CLARA", "DAVID", "EMMA"], 3)}
        lines = []
        for _ in range(12):
            speaker = draw.choice(list(cast))
            one, other = draw.choice(cast[speaker]), draw.choice(nouns)
            lines.append(f"{speaker}:\nWho {draw.choice(verbs)} the {one} {draw.choice(verbs)} the {other}.\n")
        parts.append("\n".join(lines) + "\n")
        written += len(parts[-1])
    return "".join(parts)


def train(
    model: LanguageModel, tuner: Tuner, training: Training, ids: Sequence[int], journal: Journal
) -> LanguageModel:
    """`model` as `tuner` makes it trainable, trained on full rows at random offsets."""
    torch.manual_seed(1)
    prepared = model.with_module(tuner.prepare(model.module))
    options = TrainingOptions(
        learning_rate=training.learning_rate, batch_size=training.rows, warmup=0.05, device="cpu", weight_decay=0.1
    )
    draw = random.Random(f"{training.length}/{training.steps}")
    starts = [draw.randrange(len(ids) - training.length) for _ in range(training.steps * training.rows)]
    rows = [TokenSequence(ids[at : at + training.length], [True] * training.length, f"byte {at}") for at in starts]
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(prepared, options, journal, Path(checkpoints))
        trainer.plan(training.steps)
        trainer.fit(rows, epochs=1, checkpoints=False)
    return prepared


@dataclass(frozen=True)
class Measured:
    """Perplexity at each of LENGTHS, and the CPU seconds it took to get there."""

    stage: str
    context: str
    perplexity: dict[int, float]
    seconds: float


def measure(model: LanguageModel, text: str, journal: Journal) -> dict[int, float]:
    samples = [Sample((Message("assistant", text),), templated=False, source="held out")]
    rows = EVALUATOR.evaluate(model, samples, HuggingFace(), journal).rows
    return {row["length"]: row["perplexity"] for row in rows}


def load(directory: Path, context: str) -> LanguageModel:
    scaling = CONTEXTS[context]
    return Pretrained(path=str(directory)).load("float32", "cpu", scaling(length=LONG) if scaling else None)


def carry_out(text: str, directory: Path) -> tuple[list[Measured], int]:
    """Train, stretch, measure, fine-tune, measure; what was found and the model's number of parameters."""
    journal = Journal(None, lambda _event, **_values: None)
    cut = int(len(text) * (1 - HELD_OUT))
    tokenizer = byte_tokenizer()
    ids = list(tokenizer(text[:cut])["input_ids"])
    found: list[Measured] = []

    def note(stage: str, context: str, model: LanguageModel, started: float) -> None:
        perplexity = measure(model, text[cut:], journal)
        found.append(Measured(stage, context, perplexity, time.process_time() - started))
        print(stage, context, {k: round(v, 3) for k, v in perplexity.items()}, f"{found[-1].seconds:.0f} s", flush=True)

    started = time.process_time()
    base = train(new_model(tokenizer), Full(), BASE, ids, journal)
    base.save(directory)
    note("trained at 256", "none", base, started)
    for context in list(CONTEXTS)[1:]:
        started = time.process_time()
        note("zero-shot", context, load(directory, context), started)
    for stage, (tuner, training) in TUNINGS.items():
        if stage == "full":
            started = time.process_time()
            short = Training(training.steps, training.rows * LONG // SHORT, SHORT, training.learning_rate)
            note("full, on 256", "none", train(load(directory, "none"), tuner, short, ids, journal), started)
        for context in CONTEXTS:
            started = time.process_time()
            note(stage, context, train(load(directory, context), tuner, training, ids, journal), started)
    return found, sum(parameter.numel() for parameter in base.module.parameters())


def report(found: Sequence[Measured], parameters: int, source: str, wall: float) -> str:
    base = found[0].perplexity[SHORT]
    lines = [
        "# Long contexts, measured",
        "",
        f"A Llama of {parameters:,} parameters trained at {SHORT} bytes on {source}, taken to {LONG:,}: perplexity per",
        f"byte of the same held-out text, with {SHORT}, 512 or {LONG:,} in the window (the last {EVALUATOR.stretch}",
        f"of {EVALUATOR.windows} windows are scored). The ratio is to its {base:.3f} at {SHORT}. Made by",
        "`python benchmarks/long_context.py`.",
        "",
        "| stage | context | 256 | 512 | 1,024 | ratio at 1,024 | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for each in found:
        values = " | ".join(f"{each.perplexity[length]:.3f}" for length in LENGTHS)
        ratio = each.perplexity[LONG] / base
        lines.append(f"| {each.stage} | {each.context} | {values} | {ratio:.3f} | {each.seconds:.0f} |")
    training = [("trained", BASE), *((name, training) for name, (_, training) in TUNINGS.items())]
    lines += ["", "Training, as steps x rows x tokens at a learning rate:", ""]
    lines += [f"- {name}: {t.steps:,} x {t.rows} x {t.length:,} at {t.learning_rate:g}" for name, t in training]
    total = sum(each.seconds for each in found)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    threads = torch.get_num_threads()
    lines += [
        "",
        f"{total:,.0f} CPU seconds in all, {wall:,.0f} seconds by the clock; {threads} thread(s), {versions}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "long_context.md")
    parser.add_argument("--keep", type=Path, help="where to leave the trained model; nowhere if unset")
    options: Any = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found, parameters = carry_out(read_text(options.text), options.keep or Path(temporary))
    source = "Tiny Shakespeare" if options.text.is_file() else "made-up dialogues"
    words = report(found, parameters, source, time.monotonic() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(words, encoding="utf-8")
    print(words)


if __name__ == "__main__":
    main()
