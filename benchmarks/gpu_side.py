"""One side of `gpu.py`: a few steps of training a model with random weights, in the environment of either toolkit.

Prints one JSON line: tokens per second, the most memory, and how many weights there are.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, WARMUP, PASSES, VOCABULARY = 10, 3, 2, 32_000
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def main() -> None:
    """Train as the JSON argument says."""
    given = json.loads(sys.argv[1])
    cuda = given["device"] == "cuda"
    if cuda and given["budget"]:
        torch.cuda.set_per_process_memory_fraction(given["budget"] * 1e9 / torch.cuda.mem_get_info()[1])
    module = make_model(given)
    matrices = sum(p.numel() for p in module.parameters() if p.dim() > 1) - module.get_input_embeddings().weight.numel()
    ids = torch.randint(3, VOCABULARY, (STEPS * PASSES * given["rows"], given["length"])).tolist()
    ends: list[float] = []

    def step_ended() -> None:
        if cuda:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    trained = {"lmflow": lmflow, "trl": trl}[given["side"]](given, module, ids, step_ended)
    seconds = statistics.median(later - earlier for earlier, later in zip(ends[WARMUP:], ends[WARMUP + 1 :]))
    print(  # the last line of standard output
        json.dumps(
            {
                "tokens_per_second": PASSES * given["rows"] * given["length"] / seconds,
                "peak": torch.cuda.max_memory_reserved() if cuda else 0,
                "matrices": matrices,
                "trained": trained,
                "device": torch.cuda.get_device_name() if cuda else "CPU",
                "versions": ", ".join(f"{name} {version_of(name)}" for name in PACKAGES[given["side"]]),
            }
        )
    )


PACKAGES = {
    "lmflow": ("torch", "transformers", "peft", "liger-kernel"),
    "trl": ("torch", "transformers", "peft", "trl", "liger-kernel"),
}


def version_of(name: str) -> str:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def make_model(given: dict[str, Any]) -> Any:
    """A Llama with random weights, made on the device; in bfloat16 where they will not train."""
    dtype = torch.bfloat16 if given["lora"] else torch.float32
    config = LlamaConfig(
        **given["config"], vocab_size=VOCABULARY, max_position_embeddings=given["length"], pad_token_id=0, dtype=dtype
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(given["device"]):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def make_tokenizer() -> Any:
    """What both sides want to be given; all tokens are made already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    core = Tokenizer(WordLevel({"<pad>": 0, "<end>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def lmflow(given: dict[str, Any], module: Any, ids: list[list[int]], step_ended: Any) -> int:
    """lmflow's trainer; returns how many weights train."""
    from lmflow.builtin.full import Full
    from lmflow.data.sample import TokenSequence
    from lmflow.models.language_model import LanguageModel
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.run.log import RunLog
    from lmflow.testing.contexts import trainer_setup
    from lmflow.training.trainer import Trainer
    from lmflow_lora.lora import Lora

    tuner = Lora(rank=LORA["r"], alpha=LORA["lora_alpha"]) if given["lora"] else Full()
    model = LanguageModel(module, make_tokenizer(), "random").prepare(tuner)
    options = TrainingOptions(
        batch_size=PASSES * given["rows"],
        micro_batch_size=given["rows"],
        gradient_checkpointing=given["recompute"],
        device=given["device"],
    )
    log = RunLog(None, lambda event, **values: step_ended() if "loss" in values.get("metrics", {}) else None)
    setup = trainer_setup("constant", precision="bf16")
    trainer = Trainer(model, options, log, Path(tempfile.gettempdir()), setup)
    sequences = [TokenSequence(each, [True] * len(each)) for each in ids]
    trainer.plan(STEPS)
    trainer.fit(sequences, steps=trainer.steps_for(len(sequences), 1), checkpoints=False)
    return sum(p.numel() for p in model.module.parameters() if p.requires_grad and p.dim() > 1)


def trl(given: dict[str, Any], module: Any, ids: list[list[int]], step_ended: Any) -> int:
    """trl's SFTTrainer, with Liger's kernels where they are installed; returns how many weights train."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_ended()

    model = get_peft_model(module, LoraConfig(**LORA)) if given["lora"] else module
    with tempfile.TemporaryDirectory() as place:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                output_dir=place,
                per_device_train_batch_size=given["rows"],
                gradient_accumulation_steps=PASSES,
                gradient_checkpointing=given["recompute"],
                num_train_epochs=1,
                lr_scheduler_type="constant",
                learning_rate=2e-4,
                use_cpu=given["device"] == "cpu",
                bf16=True,
                use_liger_kernel=version_of("liger-kernel") != "not installed" and given["device"] == "cuda",
                max_length=None,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            processing_class=make_tokenizer(),
            callbacks=[Clock()],
        )
        trainer.train()
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p.dim() > 1)


if __name__ == "__main__":
    main()
