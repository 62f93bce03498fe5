"""A model that scores whole sequences, trained on pairs by Bradley and Terry's loss through a whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from pydantic import Field

from lmflow.components import AlignContext, Aligner, LoadRequest, Model
from lmflow.run.record import RunResult
from lmflow.testing.runs import plugins_with, resolve_settings, write_records

if TYPE_CHECKING:
    from lmflow.data.sample import Dataset, Item, Sample
    from lmflow.models.language_model import LanguageModel
    from lmflow.training.objective import Objective


class TinyScorer(Model):
    """A tiny Llama with one number for each sequence."""

    name = "tiny-scorer"
    pads: bool = Field(True, description="Whether its configuration names the token it pads with.")

    def load(self, request: LoadRequest) -> LanguageModel:
        """Seeded weights."""
        from transformers import LlamaConfig, LlamaForSequenceClassification

        from lmflow.models.language_model import LanguageModel
        from lmflow.testing.tiny import tiny_tokenizer

        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        pad = tokenizer.pad_token_id if self.pads else None
        config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=pad, eos_token_id=1, **sizes)
        return LanguageModel(LlamaForSequenceClassification(config).eval(), tokenizer, "tiny-scorer", kind="scorer")


class Ranking(Aligner):
    """The recorded answer is to score higher than the same words in another order."""

    name = "ranking"
    epochs: ClassVar[int] = 1

    def objective(self, context: Any) -> Objective:
        """Bradley and Terry's loss, and how often the pair is in order."""
        from torch.nn.functional import logsigmoid

        from lmflow.training.loss import forward_inputs
        from lmflow.training.objective import FunctionObjective, Loss

        def loss(forward: Any, module: Any, batch: Any) -> Loss:
            found = forward(**forward_inputs(batch)).logits.float().squeeze(-1)
            margin = found[::2] - found[1::2]
            return Loss(-logsigmoid(margin).sum(), {"accuracy": (margin > 0).float().sum()})

        return FunctionObjective(loss, "item")

    def items(self, model: LanguageModel, samples: Sequence[Sample], data: Dataset) -> Sequence[Item]:
        """A pair of each sample."""
        from dataclasses import replace

        pairs = []
        for sample in samples:
            *prompt, answer = sample.messages
            worse = replace(answer, content=" ".join(reversed(answer.content.split())))
            [[good], [bad]] = model.encode_all([sample, replace(sample, messages=(*prompt, worse))])
            pairs.append((good, bad))
        return pairs

    def align(self, context: AlignContext) -> None:
        """One pass over the pairs."""
        pairs = self.items(context.model, context.data.train, context.data)
        steps = context.trainer.options.total_steps(len(pairs))
        context.trainer.plan(steps)
        context.trainer.fit(pairs, steps=steps, start=0)
        context.trainer.checkpoint()


def carry_out(place: Path, **changes: Any) -> RunResult:
    from lmflow.run.run import run

    rows = [{"prompt": f"Say {i}", "answer": f"one two {i} three"} for i in range(12)]
    settings = {
        "model.name": "tiny-scorer",
        "aligner.name": "ranking",
        "data.path": str(write_records(place / "rows.jsonl", rows[:9])),
        "data.validation": str(write_records(place / "heldout.jsonl", rows[9:])),
        "training.device": "cpu",
        "training.precision": "fp32",
        "training.batch_size": 3,
        "training.epochs": 4,
        "training.evaluate_every": 6,
        "training.learning_rate": 5e-3,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    plugins = plugins_with(TinyScorer, Ranking)
    return run(resolve_settings(plugins, settings), plugins, output=place / "run")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return carry_out(tmp_path_factory.mktemp("scorer"))


def test_it_completes_and_learns_the_order(result: RunResult):
    metrics = result.record["metrics"]
    assert result.status == "completed"
    assert metrics["steps"] == 12
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"]
    assert metrics["eval_accuracy_after"] >= metrics["eval_accuracy_before"]
    assert metrics["eval_accuracy_after"] == 1.0


def test_metrics_of_the_objective_are_recorded_under_their_names(result: RunResult):
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    steps, evaluations = ([line for line in lines if name in line] for name in ("loss", "eval_loss"))
    assert all(0 <= line["accuracy"] <= 1 for line in steps)
    assert [line["step"] for line in evaluations] == [6, 12]
    assert all(line.keys() == {"step", "eval_loss", "eval_accuracy"} for line in evaluations)
    assert evaluations[-1]["eval_accuracy"] == result.record["metrics"]["eval_accuracy_after"]
    assert evaluations[-1]["eval_loss"] == pytest.approx(result.record["metrics"]["eval_loss_after"])


def test_nothing_that_needs_next_tokens_is_measured(result: RunResult):
    assert not [name for name in result.record["metrics"] if name.startswith(("generic", "heldout"))]
    assert not (result.directory / "comparison.jsonl").exists()


def test_the_result_is_a_scorer_that_transformers_loads(result: RunResult):
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(result.directory / result.record["result"])
    assert type(loaded).__name__ == "LlamaForSequenceClassification"
    assert loaded.config.num_labels == 1
    start = TinyScorer().load(LoadRequest()).module
    assert not torch.equal(loaded.score.weight, start.score.weight)


def test_one_that_does_not_know_its_padding_stops_before_training(tmp_path: Path):
    from lmflow.errors import TrainingError

    with pytest.raises(TrainingError, match=r"configuration must name the tokenizer's pad token"):
        carry_out(tmp_path, model__pads=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert "steps" not in record["metrics"]
