"""One of the processes of test_rotation.py: trains with a tuner that rotates, evaluates, and says what it found."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmflow.components import Tuner
from lmflow.data.collate import Batch
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import current_processes, leave_processes
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
from lmflow.testing.contexts import trainer_setup
from lmflow.testing.tiny import tiny_model
from lmflow.training.loss import sums_by_sequence, target_logprobs
from lmflow.training.objective import FunctionObjective, Loss
from lmflow.training.trainer import Trainer

STEPS = 6


class Rotating(Tuner):
    """The last norm at every step, and one of two layers in turn for two steps."""

    name = "rotating"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Layers and norm."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layers." in name or name == "model.norm.weight")
        return model

    def active(self, step: int, names: Sequence[str], seed: int) -> Collection[str]:
        """Layer 0 in steps 0 and 1, layer 1 in steps 2 and 3, and so on."""
        return [name for name in names if ".layers." not in name or f".layers.{step // 2 % 2}." in name]


def margins(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
    """How much likelier the first of two sequences is than the second."""
    sums = sums_by_sequence(*target_logprobs(forward, module, batch), batch)
    margin = sums[::2] - sums[1::2]
    metrics = {"accuracy": (margin > 0).float().sum(), "margin": margin.sum()}
    return Loss(-nn.functional.logsigmoid(margin).sum(), metrics)


def pairs() -> list[tuple[TokenSequence, TokenSequence]]:
    """Nine of them: in fours over two processes, one process has nothing in the third step."""
    draw = random.Random(5)

    def one(name: str) -> TokenSequence:
        length = draw.randint(4, 18)
        return TokenSequence([draw.randint(3, 250) for _ in range(length)], [i > 1 for i in range(length)], name)

    return [(one(f"{i}+"), one(f"{i}-")) for i in range(9)]


def work(directory: Path) -> dict[str, Any]:
    """What is found: every step's figures, the held-out figures before and after, all weights and the state kept."""
    torch.set_num_threads(1)
    processes = current_processes("cpu")
    tuner = Rotating()
    found: list[dict[str, Any]] = []

    def keep(*_: Any, metrics: Any = None, **__: Any) -> None:
        found.append(metrics)

    log = RunLog(None, keep, processes=processes)
    setup = trainer_setup("constant", 0, tuner=tuner, objective=FunctionObjective(margins, "item"))
    options = TrainingOptions(batch_size=4, micro_batch_size=2, learning_rate=3e-3)
    trainer = Trainer(tiny_model().prepare(tuner), options, log, directory, setup)
    items = pairs()
    before = trainer.validate(items)
    trainer.plan(STEPS)
    trainer.fit(items, steps=STEPS)
    return {
        "steps": [{name: m[name] for name in ("loss", "accuracy", "margin", "grad_norm")} for m in found],
        "before": before,
        "after": trainer.validate(items),
        "weights": {name: p.detach().flatten().tolist() for name, p in trainer.model.module.named_parameters()},
        "state": sorted(trainer._strategy.optimizer_state()),
        "processes": processes.size,
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = work(place / "checkpoints")
    (place / f"found-{current_processes().rank}.json").write_text(json.dumps(found))
    leave_processes()
