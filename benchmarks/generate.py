"""Tokens per CPU second of inferencer `hf` beside `model.generate(num_return_sequences=8)` on the same work.

64 prompts of mixed length, 8 samples each, one thread. The peer takes the prompts in the order they arrive, 8 at a
time (64 rows), padded on the left; ours may hold as many tokens in its cache as the peer's largest batch, no more. The
model is small and random; a bias on its head makes the end likely, for both alike, so that lengths vary as they do in
practice. Both times are `time.process_time()`, runs interleaved, the least of three.

    python benchmarks/generate.py [--output benchmarks/results/generate.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from lmflow.components import GenerateRequest
from lmflow.data.sample import Prompt
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Sampling

END, PAD = 1, 2
SAMPLES, PEER_PROMPTS, ROUNDS = 8, 8, 3


@dataclass(frozen=True)
class Shape:
    """A model and its work: prompts of `prompts` tokens, completions of `mean` tokens on average, `longest` at most."""

    name: str
    layers: int
    hidden: int
    vocabulary: int
    prompts: tuple[int, int]
    mean: int
    longest: int


SHAPES = [
    Shape("6 x 256, vocabulary 8,192", 6, 256, 8192, (16, 128), 40, 128),
    Shape("4 x 128, vocabulary 2,048", 4, 128, 2048, (8, 64), 20, 64),
    Shape("6 x 512, vocabulary 2,048", 6, 512, 2048, (8, 64), 12, 32),
]


def build(shape: Shape) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 8 // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 32,
        num_key_value_heads=shape.hidden // 64,
        max_position_embeddings=1024,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    module = LlamaForCausalLM(config).eval()
    odds = torch.tensor(1 / (shape.mean - 1)).log()

    def make_end_likely(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits[..., PAD] = -torch.inf
        logits[..., END] = -torch.inf
        logits[..., END] = logits.logsumexp(-1) + odds
        return logits

    module.lm_head.register_forward_hook(make_end_likely)
    tokenizer = SimpleNamespace(pad_token_id=PAD)
    return SimpleNamespace(
        module=module,
        tokenizer=tokenizer,
        end_ids=(END,),
        context_length=1024,
        device=torch.device("cpu"),
        decode=lambda ids: " ".join(map(str, ids)),
    )


def arriving(shape: Shape) -> list[Prompt]:
    order = random.Random(0)
    return [
        Prompt([order.randrange(3, shape.vocabulary) for _ in range(order.randint(*shape.prompts))]) for _ in range(64)
    ]


def ours(model: Any, prompts: list[Prompt], shape: Shape, seed: int) -> int:
    largest = SAMPLES * PEER_PROMPTS * (shape.prompts[1] + shape.longest)
    sampling = Sampling(n=SAMPLES, max_new_tokens=shape.longest, seed=seed)
    drawn = HuggingFace(batch_tokens=largest).generate(GenerateRequest(model, prompts, sampling))
    return sum(len(completion.ids) for row in drawn for completion in row)


def peer(model: Any, prompts: list[Prompt], shape: Shape, seed: int) -> int:
    torch.manual_seed(seed)
    tokens = 0
    for start in range(0, len(prompts), PEER_PROMPTS):
        batch = prompts[start : start + PEER_PROMPTS]
        width = max(len(prompt.ids) for prompt in batch)
        ids = torch.tensor([[PAD] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in batch])
        with torch.no_grad():
            drawn = model.module.generate(
                ids,
                attention_mask=(ids != PAD).long(),
                do_sample=True,
                top_k=0,
                num_return_sequences=SAMPLES,
                max_new_tokens=shape.longest,
            )
        tokens += int((drawn[:, width:] != PAD).sum())
    return tokens


def measure(shape: Shape) -> str:
    model, prompts = build(shape), arriving(shape)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    lengths = []
    for run in range(ROUNDS + 1):
        for name, generate in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            tokens = generate(model, prompts if run else prompts[:8], shape, run)
            seconds = time.process_time() - start
            if run:  # the first, short round only warms up
                rates[name].append(tokens / seconds)
                lengths.append(tokens / (64 * SAMPLES))
    best = {name: max(values) for name, values in rates.items()}
    size = sum(parameter.numel() for parameter in model.module.parameters()) / 1e6
    work = f"{shape.prompts[0]}-{shape.prompts[1]}"
    mean = sum(lengths) / len(lengths)
    return (
        f"| {shape.name} ({size:.1f}M) | {work} | {mean:.0f} (at most {shape.longest}) | "
        f"{best['ours']:,.0f} | {best['peer']:,.0f} | {best['ours'] / best['peer']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "generate.md")
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)
    table = [
        "| model (Llama) | prompt tokens | tokens per completion | hf | model.generate | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        table.append(measure(shape))
        print(table[-1], flush=True)
    output.write_text(
        "# Sampling: inferencer `hf` beside `model.generate`\n\n"
        f"{(__doc__ or '').partition('    python')[0].strip()}\n\n"
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        "float32, temperature 1. The figures below the two names are tokens per CPU second and hold for one machine; "
        "the ratio is what counts.\n\n" + "\n".join(table) + "\n"
    )
    print(f"written to {output}")


if __name__ == "__main__":
    main()
