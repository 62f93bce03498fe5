"""One side of `training.py`: trains on tokens that are made already, in the environment of whichever toolkit it is.

Prints one JSON line: seconds of the processor in training, tokens and targets gone through, mean loss, peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lmflow.components import LoadRequest

PACKED_LENGTH, MICRO = 1024, 8
OPTIMIZER = {"learning_rate": 1e-4, "weight_decay": 0.0, "max_grad_norm": 1.0}
LORA = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IGNORED = -100


def main() -> None:
    """Train as the JSON argument says."""
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    records = [json.loads(line) for line in Path(given["tokens"]).read_text(encoding="utf-8").splitlines()]
    side = {"lmflow": ours, "trl": trl, "transformers": transformers, "llamafactory": llamafactory}[given["side"]]
    started, loss = side(given, records)
    spent = time.process_time() - started
    print(  # the last line of standard output
        json.dumps(
            {
                "seconds": spent,
                "tokens": sum(len(each["ids"]) for each in records),
                "loss": loss,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def ours(given: dict[str, Any], records: list[dict[str, Any]]) -> tuple[float, float]:
    """lmflow's trainer."""
    from lmflow.builtin.full import Full
    from lmflow.data.sample import TokenSequence
    from lmflow.models.pretrained import Pretrained
    from lmflow.recipe.sections.training import TrainingOptions
    from lmflow.run.log import RunLog
    from lmflow.testing.contexts import trainer_setup
    from lmflow.training.trainer import Trainer
    from lmflow_lora.lora import Lora

    model = Pretrained(path=given["model"]).load(LoadRequest())
    model = model.prepare(Lora() if given["lora"] else Full())
    options = TrainingOptions(
        batch_size=given["batch"],
        device="cpu",
        precision="fp32",
        max_grad_norm=OPTIMIZER["max_grad_norm"],
        learning_rate=given["rate"],
    )
    losses: list[tuple[float, int]] = []
    log = RunLog(
        None,
        lambda event, **values: losses.append(values["metrics"]["loss"]) if "metrics" in values else None,
    )
    sequences = [TokenSequence(each["ids"], each["trained"]) for each in records]
    started = time.process_time()
    setup = trainer_setup(
        "constant", warmup=0, weight_decay=OPTIMIZER["weight_decay"], packing=given["packed"], max_length=PACKED_LENGTH
    )
    trainer = Trainer(model, options, log, Path(tempfile.gettempdir()), setup)
    trainer.plan(options.steps_for(len(sequences), 1))
    return started, trainer.fit(sequences, steps=trainer.steps_for(len(sequences), 1), checkpoints=False)


def arguments(given: dict[str, Any], place: str) -> dict[str, Any]:
    """What the trainers that descend from transformers' have in common."""
    return {
        "output_dir": place,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": given["batch"] // MICRO,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **OPTIMIZER,
        "learning_rate": given["rate"],
    }


def loaded(given: dict[str, Any]) -> tuple[Any, Any]:
    """The model, with adapters if asked for, and its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    if given["lora"]:
        model = get_peft_model(model, LoraConfig(**LORA))
    return model, AutoTokenizer.from_pretrained(given["model"])


def labelled(records: list[dict[str, Any]]) -> Any:
    """The tokens as a data set with labels."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "input_ids": each["ids"],
                "labels": [i if t else IGNORED for i, t in zip(each["ids"], each["trained"], strict=True)],
            }
            for each in records
        ]
    )


def mean_loss(trainer: Any) -> float:
    """The mean of the steps' losses."""
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return float(sum(map(float, found)) / len(found))


def transformers(given: dict[str, Any], records: list[dict[str, Any]]) -> tuple[float, float]:
    """transformers' Trainer, padding to the longest of a batch."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = loaded(given)
    with tempfile.TemporaryDirectory() as place:
        trainer = Trainer(
            model,
            TrainingArguments(**arguments(given, place)),
            train_dataset=labelled(records),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        started = time.process_time()
        trainer.train()
    return started, mean_loss(trainer)


def trl(given: dict[str, Any], records: list[dict[str, Any]]) -> tuple[float, float]:
    """trl's SFTTrainer; packed rows are taken so many at a time that the number of steps stays the same."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loaded(given)
    rows = {}
    if given["packed"]:
        tokens = sum(len(each["ids"]) for each in records) / PACKED_LENGTH
        steps = -(-len(records) // given["batch"])
        rows = {"per_device_train_batch_size": max(1, round(tokens / steps)), "gradient_accumulation_steps": 1}
    with tempfile.TemporaryDirectory() as place:
        trainer = SFTTrainer(
            model,
            SFTConfig(
                **{**arguments(given, place), **rows},
                packing=given["packed"],
                max_length=PACKED_LENGTH,
                gradient_checkpointing=False,
                loss_type="nll",
            ),
            train_dataset=labelled(records),
            processing_class=tokenizer,
        )
        started = time.process_time()
        trainer.train()
    return started, mean_loss(trainer)


def llamafactory(given: dict[str, Any], records: list[dict[str, Any]]) -> tuple[float, float]:
    """LLaMA-Factory, from tokens on disk; the training itself is timed, by its own callback."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started, losses = 0.0, []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            Clock.started = time.process_time()

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, Any], **____: Any) -> None:
            if "loss" in logs:
                Clock.losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as place:
        data = labelled(records)
        data = data.add_column("attention_mask", [[1] * len(ids) for ids in data["input_ids"]])
        data.save_to_disk(f"{place}/tokens")
        options = {
            **arguments(given, f"{place}/out"),
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": given["model"],
            "template": "empty",
            "dataset": "named but not read",
            "tokenized_path": f"{place}/tokens",
            "cutoff_len": PACKED_LENGTH,
            "finetuning_type": "lora" if given["lora"] else "full",
            "dataloader_num_workers": 0,
        }
        if given["lora"]:
            options |= {"lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_target": "all"}
        os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
        run_exp(options, callbacks=[Clock()])
    return Clock.started, sum(Clock.losses) / len(Clock.losses)


if __name__ == "__main__":
    main()
