"""Models of known shape with random weights, and dialogues, for benchmarks that must not need a download."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SHAPES: Mapping[str, Mapping[str, int]] = {
    "6M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
    "28M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Llama shapes, by their parameters with the vocabulary that is used here."""
VOCABULARY = 8_000
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]


def read_dialogues(path: Path | None, count: int) -> list[list[dict[str, str]]]:
    """Dialogues of an Alpaca file, or generated ones of like lengths where there is no such file."""
    if path is None:
        return list(generated(count))
    records = json.loads(path.read_text(encoding="utf-8"))[:count]
    return [
        [
            {"role": "user", "content": "\n".join(filter(None, (each["instruction"], each.get("input"))))},
            {"role": "assistant", "content": each["output"]},
        ]
        for each in records
    ]


def generated(count: int) -> Iterator[list[dict[str, str]]]:
    """Dialogues of invented words, whose lengths spread as those of Alpaca do."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeiounrstlmdk", k=draw.randint(2, 9))) for _ in range(4_000)]
    for _ in range(count):
        lengths = 10 + int(draw.expovariate(1 / 10)), 10 + int(draw.expovariate(1 / 60))
        turns = [" ".join(draw.choices(words, k=length)) for length in lengths]
        yield [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=True)]


def write_dialogues(dialogues: Sequence[Sequence[Mapping[str, str]]], path: Path) -> None:
    """One `{"messages": …}` a line."""
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in dialogues), encoding="utf-8")


def make_tokenizer(dialogues: Sequence[Sequence[Mapping[str, str]]], vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE learnt on the dialogues, with a chat template whose answers are marked."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lmflow.data.chat_templates import chat_template

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((turn["content"] for turns in dialogues for turn in turns), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    tokenizer.chat_template = chat_template("chatml")
    return tokenizer


def make_model(shape: str, tokenizer: Any, directory: Path, positions: int = 2048) -> int:
    """Write a Llama with random weights beside its tokenizer; returns how many parameters it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        vocab_size=VOCABULARY,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())
