"""An objective's metrics: means over the same targets or items as the loss, however the samples are put into batches."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmflow.data.collate import Batch
from lmflow.data.sample import TokenSequence
from lmflow.errors import TrainingError
from lmflow.recipe.sections.training import TrainingOptions
from lmflow.run.directory import RunDirectory
from lmflow.run.log import RunLog
from lmflow.testing.contexts import trainer_setup
from lmflow.training.loss import sums_by_sequence, target_logprobs
from lmflow.training.objective import FunctionObjective, Loss
from lmflow.training.trainer import Trainer

Pair = tuple[TokenSequence, TokenSequence]
SPLITS: list[dict[str, Any]] = [{"micro_batch_size": 1}, {"micro_batch_size": 5}, {"packing": True}, {}]


def token_objective(forward: Any, module: Any, batch: Batch) -> Loss:
    """The next-token loss, and its square: an average over tokens of very different sequences."""
    logprobs, _ = target_logprobs(forward, module, batch)
    return Loss(-logprobs.sum(), {"square": logprobs.square().sum(), "even": float(batch.num_targets) / 2})


def pair_objective(forward: Any, module: Any, batch: Batch) -> Loss:
    sums = sums_by_sequence(*target_logprobs(forward, module, batch), batch)
    margins = sums[::2] - sums[1::2]
    return Loss(-torch.nn.functional.logsigmoid(margins).sum(), {"wins": (margins > 0).sum(), "margin": margins.sum()})


@pytest.fixture
def sequences() -> list[TokenSequence]:
    draw = random.Random(0)
    made = []
    for index in range(12):
        length, prompt = draw.randint(6, 30), draw.randint(1, 4)
        ids = [draw.randint(3, 250) for _ in range(length)]
        made.append(TokenSequence(ids, [False] * prompt + [True] * (length - prompt), f"s{index}"))
    return made


@pytest.fixture
def make(tiny_model: Any, tmp_path: Path) -> Callable[..., tuple[Trainer, list[dict[str, Any]], Path]]:
    def build(objective: Any, per: Any, heldout: Any = (), packing: bool = False, **settings: Any) -> Any:
        seen: list[dict[str, Any]] = []
        directory = RunDirectory(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        log = RunLog(directory, lambda *_, metrics=None, **__: seen.append(dict(metrics)) if metrics else None)
        options = TrainingOptions(**{"batch_size": 12, "learning_rate": 1e-3, "evaluate_every": 1, **settings})
        setup = trainer_setup(
            heldout=heldout, objective=FunctionObjective(objective, per), packing=packing, max_length=64
        )
        trainer = Trainer(copy.deepcopy(tiny_model), options, log, tmp_path / "checkpoints", setup)
        directory.close()
        return trainer, seen, directory.path

    return build


def logprobs(model: Any, sequence: TokenSequence) -> list[float]:
    with torch.no_grad():
        rows = model.module(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
    return [float(rows[i - 1, sequence.ids[i]]) for i in range(1, len(sequence)) if sequence.loss_mask[i]]


@pytest.mark.parametrize("split", SPLITS)
def test_means_over_tokens(make: Any, sequences: list[TokenSequence], tiny_model: Any, split: dict[str, Any]):
    trainer, seen, path = make(token_objective, "token", sequences[:5], **split)
    trainer.fit(sequences, steps=1, checkpoints=False)
    every = [value for sequence in sequences for value in logprobs(tiny_model, sequence)]
    step, evaluation = seen
    assert step["square"] == pytest.approx(sum(v * v for v in every) / len(every), rel=1e-4)
    assert step["loss"] == pytest.approx(-sum(every) / len(every), rel=1e-4)
    assert step["even"] == evaluation["eval_even"] == pytest.approx(0.5)
    after = [value for sequence in sequences[:5] for value in logprobs(trainer.model, sequence)]
    assert evaluation["eval_square"] == pytest.approx(sum(v * v for v in after) / len(after), rel=1e-4)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [{"square", "even"} <= lines[0].keys(), {"eval_square", "eval_even"} <= lines[1].keys()] == [True, True]


@pytest.mark.parametrize("split", SPLITS)
def test_means_over_items(make: Any, sequences: list[TokenSequence], tiny_model: Any, split: dict[str, Any]):
    pairs = list(zip(sequences[::2], sequences[1::2], strict=True))
    trainer, seen, _ = make(pair_objective, "item", pairs[:5], **split)
    trainer.fit(pairs, steps=1, checkpoints=False)
    margins = [sum(logprobs(tiny_model, one)) - sum(logprobs(tiny_model, other)) for one, other in pairs]
    step, evaluation = seen
    assert step["margin"] == pytest.approx(sum(margins) / 6, rel=1e-4)
    assert step["wins"] == pytest.approx(sum(each > 0 for each in margins) / 6)
    assert evaluation["eval_wins"] in [count / 5 for count in range(6)]
    assert trainer.validate(pairs[:1])["wins"] in (0.0, 1.0)


def test_a_metric_with_the_name_of_the_trainers_own_is_refused():
    with pytest.raises(TrainingError, match="metric is called loss, as the trainer's own is; rename it"):
        Loss(torch.zeros(()), {"loss": 1.0})
