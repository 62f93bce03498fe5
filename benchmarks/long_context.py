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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lmflow.builtin.full import Full
from lmflow.components import LoadRequest, Tuner
from lmflow.data.sample import Message, Sample, TokenSequence
from lmflow.inference.hf import HuggingFace
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context, trainer_setup
from lmflow.training.trainer import Trainer
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


BASE = Training(steps=900, rows=8, length=SHORT, learning_rate=3e-3)
TUNINGS: dict[str, tuple[type[Tuner], dict[str, Any], Training]] = {
    "full": (Full, {}, Training(steps=200, rows=1, length=LONG, learning_rate=1.5e-3)),
    "LoRA": (Lora, {"rank": 32, "alpha": 64}, Training(steps=120, rows=1, length=LONG, learning_rate=6e-3)),
    "full, longer": (Full, {}, Training(steps=1000, rows=1, length=LONG, learning_rate=1.5e-3)),
    "full, longer, at 256": (Full, {}, Training(steps=1000, rows=4, length=SHORT, learning_rate=1.5e-3)),
}
TASKS = [
    *(("zero-shot", name) for name in CONTEXTS if name != "none"),
    *(("LoRA", name) for name in CONTEXTS),
    *(("full", name) for name in CONTEXTS),
    ("full, longer", "linear"),
    ("full, longer, at 256", "none"),
]
"""What becomes of the trained model: (stage, context), each on its own."""


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


def train(model: LanguageModel, tuner: Tuner, training: Training, ids: Sequence[int], log: RunLog) -> LanguageModel:
    """`model` as `tuner` makes it trainable, trained on full rows at random offsets."""
    torch.manual_seed(1)
    prepared = model.with_module(tuner.prepare(model.module))
    options = TrainingOptions(learning_rate=training.learning_rate, batch_size=training.rows, device="cpu")
    draw = random.Random(f"{training.length}/{training.steps}")
    starts = [draw.randrange(len(ids) - training.length) for _ in range(training.steps * training.rows)]
    rows = [TokenSequence(ids[at : at + training.length], [True] * training.length, f"byte {at}") for at in starts]
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(prepared, options, log, Path(checkpoints), trainer_setup(warmup=0.05, weight_decay=0.1))
        trainer.plan(training.steps)
        trainer.fit(rows, steps=trainer.steps_for(len(rows), 1), checkpoints=False)
    return prepared


@dataclass(frozen=True)
class Measured:
    """Perplexity at each of LENGTHS, and the CPU seconds it took to get there."""

    stage: str
    context: str
    perplexity: dict[int, float]
    seconds: float


def measure(model: LanguageModel, text: str, log: RunLog) -> dict[int, float]:
    samples = [Sample((Message("assistant", text),), templated=False, source="held out")]
    rows = EVALUATOR.evaluate(evaluate_context(model, samples, HuggingFace(), log)).rows
    return {row["length"]: row["perplexity"] for row in rows}


def load(directory: Path, context: str) -> LanguageModel:
    scaling = CONTEXTS[context]
    return Pretrained(path=str(directory)).load(LoadRequest(context=scaling(length=LONG) if scaling else None))


def carry_out(text: str, directory: Path, jobs: int) -> tuple[list[Measured], int]:
    """Train, then stretch, fine-tune and measure; what was found and the model's number of parameters."""
    started = time.process_time()
    train_text, held_out = split(text)
    tokenizer = byte_tokenizer()
    base = train(new_model(tokenizer), Full(), BASE, tokenizer(train_text)["input_ids"], silent())
    base.save(directory)
    found = [Measured("trained at 256", "none", measure(base, held_out, silent()), time.process_time() - started)]
    show(found[0])
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        # The longest first, so that no process waits for one that began late.
        waiting = {task: pool.submit(carry_out_task, text, directory, *task) for task in reversed(TASKS)}
        found += [waiting[task].result() for task in TASKS]
    return found, sum(parameter.numel() for parameter in base.module.parameters())


def carry_out_task(text: str, directory: Path, stage: str, context: str) -> Measured:
    """The trained model under a context, fine-tuned as the stage says, measured."""
    started = time.process_time()
    train_text, held_out = split(text)
    model = load(directory, context)
    if stage in TUNINGS:
        tuner, options, training = TUNINGS[stage]
        model = train(model, tuner(**options), training, model.tokenizer(train_text)["input_ids"], silent())
    found = Measured(stage, context, measure(model, held_out, silent()), time.process_time() - started)
    show(found)
    return found


def split(text: str) -> tuple[str, str]:
    cut = int(len(text) * (1 - HELD_OUT))
    return text[:cut], text[cut:]


def silent() -> RunLog:
    return RunLog(None, lambda _event, **_values: None)


def show(found: Measured) -> None:
    values = {length: round(value, 3) for length, value in found.perplexity.items()}
    print(found.stage, found.context, values, f"{found.seconds:.0f} s", flush=True)


def report(found: Sequence[Measured], parameters: int, source: str, wall: float, jobs: int) -> str:
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
    training = [("trained", BASE), *((name, training) for name, (_, _, training) in TUNINGS.items())]
    lines += ["", "Training, as steps x rows x tokens at a learning rate:", ""]
    lines += [f"- {name}: {t.steps:,} x {t.rows} x {t.length:,} at {t.learning_rate:g}" for name, t in training]
    total = sum(each.seconds for each in found)
    versions = f"Torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    lines += [
        "",
        f"{total:,.0f} CPU seconds in all, {wall:,.0f} by the clock beside other work; {jobs} processes of one thread.",
        f"{versions}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "long_context.md")
    parser.add_argument("--keep", type=Path, help="where to leave the trained model; nowhere if unset")
    parser.add_argument("--jobs", type=int, default=2, help="processes that fine-tune side by side, a thread each")
    options: Any = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found, parameters = carry_out(read_text(options.text), options.keep or Path(temporary), options.jobs)
    source = "Tiny Shakespeare" if options.text.is_file() else "made-up dialogues"
    words = report(found, parameters, source, time.monotonic() - started, options.jobs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(words, encoding="utf-8")
    print(words)


if __name__ == "__main__":
    main()
