"""Speculative decoding beside plain sampling and transformers' assisted generation, on one pair of models.

The recipe is made of lmflow's own commands: a Llama of 6.7M parameters with 8 layers is trained from nothing on the
text beside the embedded model (`lmflow run`), then a draft of one layer on what that target answers to beginnings of
paragraphs (`lmflow draft`). Measured is the continuation of 24 beginnings the draft has not seen, one at a time, by
each way in turn, so that all meet the same noise; seconds are `time.process_time()` on one thread, passes are counted
by a hook on the target. Greedy texts are checked to be the same, token for token.

    python benchmarks/speculative.py [--directory DIR] [--output benchmarks/results/speculative.md]

Finished models in DIR are used again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lmflow.components import GenerateRequest, Inferencer, LoadRequest
from lmflow.data.sample import Prompt
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling
from lmflow.models.language_model import LanguageModel
from lmflow.models.pretrained import Pretrained
from lmflow_speculative.speculative import Speculative

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "plugins" / "lmflow-demo"
PROMPTS, BEGINNING, NEW = 24, 10, 96
TOGETHER = 32
TEMPERATURES = (0.0, 0.7, 1.0)
TRAINING = {
    "training.max_steps": 400,
    "training.batch_size": 8,
    "training.learning_rate": 2e-3,
    "training.precision": "bf16",
    "schedule.warmup": 0.05,
}
DRAFT = {"sampling.max_new_tokens": 48, "sampling.n": 2, "training.epochs": 4, "training.learning_rate": 3e-3}
DRAFT_PROMPTS = 1500


@dataclass
class Tally:
    """What one way of drawing took."""

    tokens: int = 0
    seconds: float = 0.0
    passes: int = 0
    texts: list[tuple[int, ...]] = field(default_factory=list)


# The pair


def paragraphs() -> list[str]:
    """Passages of some 600 characters, shuffled."""
    passages, current = [], ""
    for line in gzip.decompress((DEMO / "scripts" / "text.txt.gz").read_bytes()).decode().splitlines():
        if line.strip():
            current += line + "\n"
        if len(current) > 600:
            passages.append(current)
            current = ""
    random.Random(0).shuffle(passages)
    return passages


def beginnings(passages: list[str]) -> list[str]:
    """The first words of every line that has more."""
    lines = [line.split() for passage in passages for line in passage.splitlines()]
    return [" ".join(words[:BEGINNING]) for words in lines if len(words) > BEGINNING + 5]


def lmflow(*words: Any) -> None:
    print("$ lmflow", *words, flush=True)
    subprocess.run([sys.executable, "-m", "lmflow", *map(str, words)], check=True)


def options(section: str, values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield f"--{section}{name}"
        yield str(value)


def make_pair(directory: Path) -> tuple[list[str], dict[str, Any]]:
    """Train what is not there yet; prompts the draft has not seen, and its record."""
    directory.mkdir(parents=True, exist_ok=True)
    passages = paragraphs()
    seen, unseen = passages[:-150], passages[-150:]
    base, target, draft = (directory / name for name in ("base", "target", "draft"))
    if not base.exists():
        tokenizer = AutoTokenizer.from_pretrained(DEMO / "src" / "lmflow_demo" / "model")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
    text, prompts = directory / "text.jsonl", directory / "prompts.txt"
    text.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    prompts.write_text("".join(f"{line}\n" for line in beginnings(seen)[:DRAFT_PROMPTS]))
    if not (target / "model").exists():
        data = ("--data.path", text, "--data.max_length", 256)
        lmflow("run", "--model", base, "--tuner", "full", *data, *options("", TRAINING), "--output", target)
    if not draft.exists():
        asked = ("--model", target, "--data.path", prompts, "--raw", "--output", draft)
        lmflow("draft", *asked, *options("", DRAFT))
    record = json.loads((draft / "draft.json").read_text())
    record["target_loss"] = json.loads((target / "run.json").read_text())["metrics"]["eval_loss_after"]
    return beginnings(unseen), record


# Measuring


@contextmanager
def counted(module: Any, tally: Tally) -> Iterator[None]:
    def count(*_: Any) -> None:
        tally.passes += 1

    handle = module.register_forward_pre_hook(count)
    started = time.process_time()
    try:
        yield
    finally:
        tally.seconds += time.process_time() - started
        handle.remove()


Way = Callable[[Prompt, Sampling], tuple[int, ...]]


def ours(model: LanguageModel, inferencer: Inferencer) -> Way:
    def draw(prompt: Prompt, sampling: Sampling) -> tuple[int, ...]:
        [[completion]] = inferencer.generate(GenerateRequest(model, [prompt], sampling))
        return completion.ids

    return draw


def theirs(model: LanguageModel, draft: LanguageModel | None, **settings: Any) -> Way:
    """`generate` of transformers, assisted if there is a draft."""

    def draw(prompt: Prompt, sampling: Sampling) -> tuple[int, ...]:
        torch.manual_seed(sampling.seed)
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
        if draft is not None:
            how["assistant_model"] = draft.module
            for name, value in settings.items():
                setattr(draft.module.generation_config, name, value)
        ids = torch.tensor([list(prompt.ids)])
        with torch.no_grad():
            drawn = model.module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=sampling.max_new_tokens, **how
            )
        return tuple(drawn[0, ids.shape[1] :].tolist())

    return draw


def measure_single(model: LanguageModel, draft: LanguageModel, prompts: list[Prompt]) -> list[str]:
    table = [
        "| temperature | way | target passes per token | tokens per CPU second | beside `hf` |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for temperature in TEMPERATURES:
        speculative = {"draft": Speculative().using(draft), "lookup": Speculative()}
        ways: dict[str, Way] = {
            "`hf`": ours(model, HuggingFace()),
            "`speculative`, draft": ours(model, speculative["draft"]),
            "`speculative`, lookup": ours(model, speculative["lookup"]),
            "transformers `generate`": theirs(model, None),
            "transformers assisted, as it comes": theirs(
                model, draft, num_assistant_tokens=20, assistant_confidence_threshold=0.4
            ),
            "transformers assisted, 5 tokens": theirs(
                model, draft, num_assistant_tokens=5, assistant_confidence_threshold=0.0
            ),
        }
        tallies = {name: Tally() for name in ways}
        sampling = Sampling(temperature=temperature, max_new_tokens=NEW)
        for draw in ways.values():  # warms up
            draw(prompts[0], sampling.model_copy(update={"max_new_tokens": 8}))
        for seed, prompt in enumerate(prompts):
            for name, draw in ways.items():
                with counted(model.module, tallies[name]):
                    ids = draw(prompt, sampling.model_copy(update={"seed": seed}))
                tallies[name].tokens += len(ids)
                tallies[name].texts.append(ids)
        if temperature == 0:
            for name, tally in tallies.items():
                same = sum(a == b for a, b in zip(tally.texts, tallies["`hf`"].texts))
                print(f"{name}: {same} of {len(prompts)} texts are those of hf")
                assert same == len(prompts) or "speculative" not in name
        plain = tallies["`hf`"].tokens / tallies["`hf`"].seconds
        for name, tally in tallies.items():
            rate = tally.tokens / tally.seconds
            row = f"| {temperature:g} | {name} | {tally.passes / tally.tokens:.2f} | {rate:,.0f} | {rate / plain:.2f} |"
            table.append(row)
            print(row, flush=True)
        for name, inferencer in speculative.items():
            print(f"{name}: {inferencer.statistics.describe()}", flush=True)
            places = ", ".join(f"{share:.0%}" for share in inferencer.statistics.acceptance)
            notes.append(f"- temperature {temperature:g}, {name}: {places}")
    return [*table, "", "Share of the proposals that were kept, at the first, second, … place:", "", *notes]


def measure_batch(model: LanguageModel, draft: LanguageModel, prompts: list[Prompt]) -> list[str]:
    table = ["| temperature | way | tokens per target pass and row | tokens per CPU second |", "|---|---|---|---|"]
    for temperature in TEMPERATURES:
        inferencers = {"`hf`": HuggingFace(), "`speculative`, draft": Speculative().using(draft)}
        tallies = {name: Tally() for name in inferencers}
        for seed in range(2):
            for name, inferencer in inferencers.items():
                with counted(model.module, tallies[name]):
                    sampling = Sampling(temperature=temperature, max_new_tokens=NEW, seed=seed)
                    drawn = inferencer.generate(GenerateRequest(model, prompts, sampling))
                tallies[name].tokens += sum(len(row[0].ids) for row in drawn)
        for name, inferencer in inferencers.items():
            per_pass = inferencer.figures().get("tokens_per_target_pass", 1.0)
            rate = tallies[name].tokens / tallies[name].seconds
            table.append(f"| {temperature:g} | {name} | {per_pass:.2f} | {rate:,.0f} |")
            print(table[-1], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, help="where to keep the models; nowhere if unset")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "speculative.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory or Path(scratch)
        lines, record = make_pair(directory)
        model = Pretrained(path=str(directory / "target" / "model")).load(LoadRequest())
        draft = Pretrained(path=str(directory / "draft")).load(LoadRequest())
    everything = [Prompt(model.tokenizer(line)["input_ids"]) for line in lines]
    order = random.Random(1)
    prompts = order.sample(everything, PROMPTS)
    single = measure_single(model, draft, prompts)
    batch = measure_batch(model, draft, order.sample(everything, TOGETHER))
    arguments.output.write_text(
        "# Inferencer `speculative`\n\n"
        f"{(__doc__ or '').partition('    python')[0].strip()}\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"float32. Target {record['target_parameters']:,} parameters, held-out loss {record['target_loss']:.2f} nats "
        "per token (a few minutes of training: easier to imitate than a finished model). Draft "
        f"{record['parameters']:,} parameters, trained on {record['tokens']:,} tokens of the target's. At most {NEW} "
        "new tokens. Tokens per second hold for one machine; what counts is how they compare.\n\n"
        f"## One prompt at a time, {PROMPTS} prompts\n\n" + "\n".join(single) + "\n\n"
        f"## {TOGETHER} prompts together\n\n" + "\n".join(batch) + "\n"
    )
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
