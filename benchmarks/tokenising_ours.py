"""One process of benchmarks/tokenising.py: lmflow's side."""

import json
import os
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "true"

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lmflow.data.dataset import load_dataset
from lmflow.data.formats import FORMATS, Formats
from lmflow.models.encoding import encode
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.data import DataOptions

place = Path(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
)
model = LanguageModel(LlamaForCausalLM(config), tokenizer, "made here")
options = DataOptions(path=str(place / "dialogues.jsonl"), validation=0.0, max_length=2048)
data, _ = load_dataset(options, Formats(FORMATS), 0)
started = time.perf_counter()
sequences, report = encode(model, data.train, data.options, data.fingerprint)
seconds = time.perf_counter() - started
sys.stdout.write(json.dumps({"seconds": seconds, "tokens": report.tokens, "trained": report.num_targets}) + "\n")
