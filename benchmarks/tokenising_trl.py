"""One process of benchmarks/tokenising.py: the side of trl, whose trainer tokenises when it is made."""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

place, workers = Path(sys.argv[1]), int(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
)
with (place / "dialogues.jsonl").open(encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]


def prepare(some):
    """Seconds it takes to make a trainer for the rows, and the rows as it would train on them."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_length=2048,
            assistant_only_loss=True,
            dataset_num_proc=workers if workers > 1 else None,
            use_cpu=True,
            report_to="none",
            bf16=False,
        )
        data = Dataset.from_list(some)
        model = LlamaForCausalLM(config)
        started = time.perf_counter()
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
        return time.perf_counter() - started, trainer.train_dataset


overhead, _ = prepare(rows[:16])
seconds, found = prepare(rows)
names = {name: version(name) for name in ("trl", "transformers", "datasets")}
tokens = sum(len(ids) for ids in found["input_ids"])
trained = (
    sum(sum(mask[1:]) for mask in found["assistant_masks"])
    if "assistant_masks" in found.column_names
    else sum(sum(label != -100 for label in labels[1:]) for labels in found["labels"])
)
sys.stdout.write(json.dumps({"seconds": seconds - overhead, "tokens": tokens, "trained": trained, **names}) + "\n")
