"""`lmflow run` in two processes with a plugin's aligner that adds a head: as in one, whatever way weights are split."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmflow.testing.runs import RECORDS, write_records
from lmflow.testing.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("launching")]

PLUGIN = Path(__file__).parent.parent / "run" / "heads_aligners.py"
ALTERNATES = '''
class Alternates(Valued):
    """Its second call of fit leaves the head out."""

    name = "alternates"

    def align(self, context):
        from lmflow.training.objective import NextToken

        items = self.items(context.model, context.data.train, context.data)
        context.trainer.plan(2)
        context.trainer.fit(items, steps=1)
        context.trainer.fit(items, steps=1, objective=NextToken())
        context.trainer.checkpoint()


@hookimpl
def lmflow_aligners() -> list[type[Aligner]]:
    return [Valued, Alternates]
'''
Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def train(place: Path, shared_environment: Any) -> Train:
    """The command, in processes that find the plugin installed, and start warm."""
    site = place / "site" / "acme_heads-1.0.dist-info"
    site.mkdir(parents=True)
    (site.parent / "acme_heads.py").write_text(PLUGIN.read_text() + ALTERNATES)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-heads\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text("[lmflow]\nmain = acme_heads\n")
    tiny_model(sharpness=6.0).save(place / "model")
    write_records(place / "train.jsonl", RECORDS[:9])  # in fours: the last step of an epoch has one, for one process
    write_records(place / "heldout.jsonl", RECORDS[9:])
    started = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in started}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(site.parent)}

    def carry_out(name: str, *words: str, processes: int = 2, **changes: Any) -> subprocess.CompletedProcess[str]:
        options = {
            "model.path": place / "model",
            "tuner": "full",
            "aligner": "valued",
            "aligner.heldout_prompts": 0,
            "data.path": place / "train.jsonl",
            "data.validation": place / "heldout.jsonl",
            "training.device": "cpu",
            "training.precision": "fp32",
            "training.batch_size": 4,
            "training.micro_batch_size": 1,
            "training.max_steps": 6,
            "training.learning_rate": 3e-3,
            "launch.processes": processes,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        written = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [
            shared_environment.command("lmflow"),
            "run",
            *written,
            "--quiet",
            "--output",
            str(place / name),
            *words,
        ]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)

    return carry_out


def sound(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-4000:]


def head(run: Path) -> Mapping[str, torch.Tensor]:
    result = json.loads((run / "run.json").read_text())["result"]
    return load_file(run / result / "heads" / "heads.safetensors")


def losses(run: Path) -> list[float]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [value for line in lines for value in (line["loss"], line["value_error"], line["grad_norm"])]


@pytest.fixture(scope="module")
def alone(train: Train, place: Path) -> Path:
    sound(train("alone", processes=1))
    return place / "alone"


def test_processes_that_split_the_weights_train_it_as_one_does(train: Train, place: Path, alone: Path):
    """The whole life of a run; every strategy's training is compared in test_parallel.py."""
    sound(train("fsdp", launch__strategy="fsdp"))
    run = place / "fsdp"
    assert losses(run) == pytest.approx(losses(alone), rel=2e-4)
    found, expected = head(run), head(alone)
    assert found.keys() == expected.keys() == {"value.0.weight", "value.0.bias"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-3)
    record, single = (json.loads((each / "run.json").read_text()) for each in (run, alone))
    for when in ("before", "after"):
        name = f"eval_value_error_{when}"
        assert record["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-3)
    saved = load_file(run / "model" / "model.safetensors")
    assert not [name for name in saved if "aligner" in name]


def test_resumed_from_half_its_steps_it_ends_alike(train: Train, place: Path):
    """To the bit in as many processes as before, and up to rounding in another number."""
    every = {"training__checkpoint_every": 3}
    sound(train("whole", **every))
    for processes in (2, 1):
        half = place / f"half-{processes}"
        shutil.copytree(place / "whole", half)
        shutil.rmtree(half / "checkpoints" / "step-000006")
        record = json.loads((half / "run.json").read_text())
        (half / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
        sound(train(half.name, "--resume", processes=processes, **every))
        ended = json.loads((half / "run.json").read_text())
        assert (ended["status"], ended["metrics"]["steps"]) == ("completed", 6)
    weights = load_file(place / "half-2" / "checkpoints" / "step-000006" / "trainable.safetensors")
    for name, value in head(place / "whole").items():
        assert torch.equal(head(place / "half-2")[name], value)
        assert torch.equal(weights[f"aligner_heads.{name}"], value)
        torch.testing.assert_close(head(place / "half-1")[name], value, atol=2e-5, rtol=1e-3)
    assert "aligner_heads.value.0.weight/exp_avg" in load_file(
        place / "half-2" / "checkpoints" / "step-000003" / "optimizer.safetensors"
    )


def test_an_objective_that_leaves_it_out_of_a_step_is_refused_where_gradients_are_exchanged(train: Train, place: Path):
    sound(train("alternates-one", processes=1, aligner="alternates"))
    done = train("alternates", aligner="alternates")
    assert done.returncode == 1
    assert "2 parameters that train have no gradient in this step, such as aligner_heads.value.0" in done.stderr
    assert "--launch.processes 1" in done.stderr
    assert "Traceback" not in done.stderr
