"""One of the processes of test_parallel.py: carries out trainings one after the other, and says what each found."""

import contextlib
import gc
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import current_processes, leave_processes
from lmflow.models.language_model import LanguageModel
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
from lmflow.testing.contexts import trainer_setup
from lmflow.training.objective import NextToken
from lmflow.training.trainer import Trainer

sys.path.append(str(Path(__file__).parent.parent / "run"))
from heads_aligners import Valued, with_returns


class Tokenizer:
    pad_token_id = 2
    eos_token_id = 2


def main(work: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    group = current_processes("cpu")
    if work["origin"] and group.is_rank0:
        shutil.copytree(work["origin"], work["checkpoints"])
    group.barrier()
    module = AutoModelForCausalLM.from_pretrained(work["model"])
    if work["lora"]:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        module = get_peft_model(module, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    model = LanguageModel(module, Tokenizer(), "here")
    sequences = [TokenSequence(*row) for row in work["sequences"]]
    objective: Any = NextToken()
    if work["head"]:
        aligner = Valued()
        model = model.with_heads(aligner.heads(model), seed=0)
        module, objective = model.module, aligner.objective(SimpleNamespace(model=model))
        sequences = [with_returns(each) for each in sequences]
    options = TrainingOptions(**work["options"])
    metrics: list[dict[str, Any]] = []
    log = RunLog(None, lambda *_, metrics=None, to=metrics, **__: to.append(metrics) if metrics else None)
    setup = trainer_setup(warmup=work["warmup"], strategy=work["strategy"], objective=objective)
    trainer = Trainer(model, options, log, Path(work["checkpoints"]), setup)
    trainer.restore()
    trainer.plan(work["planned"])
    fit_until(trainer, sequences, work["until"])
    local = sum(held(parameter).numel() for parameter in module.parameters())
    state = sum(v.numel() for v in kept_by(trainer) if v.dim())
    trainer.checkpoint()
    whole = trainer.full_model().module
    if group.is_rank0:
        found = {
            "losses": [m["loss"] for m in metrics if "loss" in m],
            "value_errors": [m["value_error"] for m in metrics if "value_error" in m],
            "norms": [m["grad_norm"] for m in metrics if "grad_norm" in m],
            "processes": group.size,
            "parameters_here": local,
            "optimizer_here": state,
            "sums": {name: float(p.detach().double().sum()) for name, p in whole.named_parameters()},
        }
        Path(work["found"]).write_text(json.dumps(found))
    group.barrier()


def fit_until(trainer: Trainer, sequences: list[TokenSequence], until: int) -> None:
    """Train up to a step; the schedule is that of the planned steps."""

    class Enough(Exception):
        pass

    after_step = trainer._after_step

    def stop(checkpoints: bool) -> None:
        after_step(checkpoints)
        if trainer.step >= until:
            raise Enough

    trainer._after_step = stop  # type: ignore[method-assign]
    with contextlib.suppress(Enough):
        trainer.fit(sequences, steps=trainer.total_steps or trainer.steps_for(len(sequences), 99), start=0)


def held(parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter: as FSDP2 has it, as ZeRO's third stage has it, or all of it."""
    part: torch.Tensor = getattr(parameter, "_local_tensor", getattr(parameter, "ds_tensor", parameter))
    return part


def kept_by(trainer: Trainer) -> list[torch.Tensor]:
    optimizer = trainer._strategy.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    entries = [value for each in optimizer.state.values() for value in each.values()]
    return [getattr(value, "_local_tensor", value) for value in entries if isinstance(value, torch.Tensor)]


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        main(each)
        gc.collect()  # DeepSpeed's engines are cycles
    leave_processes()
