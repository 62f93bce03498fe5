"""What aligners stand on in two processes: log-probabilities are shared out, metrics are normalised like the loss."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import json, random, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from lmflow.data.sample import TokenSequence
from lmflow.distributed.processes import current_processes, leave_processes
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.log import RunLog
from lmflow.testing.contexts import trainer_setup
from lmflow.testing.tiny import tiny_model
from lmflow.training.loss import negative_log_likelihood, token_logprobs
from lmflow.training.objective import FunctionObjective, Loss
from lmflow.training.output_head import output_head
from lmflow.training.trainer import Trainer

def sequences(count, longest):
    draw = random.Random(0)
    for index in range(count):
        ids = [draw.randint(3, 250) for _ in range(draw.randint(4, longest))]
        yield TokenSequence(ids, [draw.random() < 0.5 for _ in ids[:-1]] + [True], f"s{index}")

lines = []
tell = lambda *_, metrics=None, **__: lines.append(dict(metrics)) if metrics else None
log = RunLog(None, tell, None, current_processes("cpu"))

def log_probabilities():
    model = tiny_model()
    output_head(model.module)  # tried once with a pass of its own
    passes = []
    model.module.register_forward_hook(lambda *_: passes.append(1))
    found = token_logprobs(model, list(sequences(200, 90)), log)
    return [log.processes.size, len(passes), [each.tolist() for each in found]]

def objective(forward, module, batch):
    long = sum(len(each) > 20 for each in batch.sequences)
    extra = {"targets_seen": float(batch.num_targets), "long": torch.tensor(float(long))}
    if batch.num_targets and any(each.source == "s3" for each in batch.sequences):
        extra["seldom"] = 6.0  # in one process only
    return Loss(negative_log_likelihood(forward, module, batch), extra)

def metrics(per):
    lines.clear()
    items = list(sequences(7, 40))
    setup = trainer_setup(heldout=items[:5], objective=FunctionObjective(objective, per))
    options = TrainingOptions(batch_size=7, micro_batch_size=2, learning_rate=1e-3)
    trainer = Trainer(tiny_model(), options, log, Path(tempfile.mkdtemp()), setup)
    trainer.fit(items, steps=1, checkpoints=False)
    [line] = lines
    names = ("loss", "targets_seen", "long", "seldom")
    return [{name: line[name] for name in names}, trainer.validate(trainer.heldout)]

print(json.dumps({"logprobs": log_probabilities(), "token": metrics("token"), "item": metrics("item")}))
leave_processes()
"""
Found = dict[str, Any]


@pytest.fixture(scope="module")
def in_two(in_two_processes: Any) -> list[Found]:
    """What each of two processes found."""
    done = in_two_processes(PROGRAM)
    assert all(each.returncode == 0 for each in done), [each.stderr[-2000:] for each in done]
    return [json.loads(each.stdout.splitlines()[-1]) for each in done]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, shared_environment: Any) -> Found:
    """What one process found."""
    file: Path = tmp_path_factory.mktemp("alone") / "alone.py"
    file.write_text(PROGRAM)
    group = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in group} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [shared_environment.command("python"), str(file)], env=environment, capture_output=True, text=True, check=True
    )
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def test_log_probabilities_are_shared_out_and_equal_those_of_one_process(in_two: list[Found], alone: Found):
    one, two, single = (each["logprobs"] for each in (*in_two, alone))
    assert [one[0], two[0], single[0]] == [2, 2, 1]
    assert one[1] + two[1] == single[1]  # each makes its part of the passes
    assert min(one[1], two[1]) > 0
    assert one[2] == two[2] == single[2]  # to the bit: the passes are the same


@pytest.mark.parametrize("per", ["token", "item"])
def test_metrics_are_normalised_like_the_loss_in_two_processes(in_two: list[Found], alone: Found, per: str):
    one, two, single = (each[per] for each in (*in_two, alone))
    for found, validated in (one, two):
        assert found == pytest.approx(single[0], rel=1e-5)
        assert validated == pytest.approx(single[1], rel=1e-5)
    assert one[0]["targets_seen"] == pytest.approx(1.0) or per == "item"
    if per == "item":
        assert one[0]["seldom"] == pytest.approx(6 / 7)
