"""The suite of evaluators passes ours, and fails those that are broken in one respect, saying in which."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lmflow.components import EvaluateContext, Evaluation, Evaluator
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.evaluators.accuracy import Accuracy, ExactMatch
from lmflow.evaluators.perplexity import Nll, Perplexity
from lmflow.testing import EvaluatorSuite
from lmflow.testing.comparing import mean_loss


@pytest.mark.parametrize(
    "given",
    [Nll(), Accuracy(max_new_tokens=6), ExactMatch(max_new_tokens=6, temperature=1.0)],
    ids=["nll", "accuracy", "exact_match"],
)
class TestOurs(EvaluatorSuite):
    @pytest.fixture
    def evaluator(self, given: Evaluator) -> Evaluator:
        return given


class TestPerplexity(EvaluatorSuite):
    @pytest.fixture
    def evaluator(self) -> Evaluator:
        return Perplexity(window=16, stride=8)

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        texts = ["the quick brown fox jumps over the lazy dog", "a model learns to answer and then to stop", "one two"]
        return [Sample((Message("assistant", text),), False, {"text": text}, f"t:{n}") for n, text in enumerate(texts)]


class Losses(Evaluator):
    """Mean loss per record, and over all: a good evaluator, from which the broken ones below differ in a line."""

    name = "losses"
    batch_size: int = 4

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        if not context.samples:
            raise DataError("losses: there is no record to measure")
        losses = self.losses(context)
        rows = [{"source": each.source, "loss": loss} for each, loss in zip(context.samples, losses)]
        return self.found(losses, rows)

    def losses(self, context: EvaluateContext) -> list[float]:
        model = context.model
        training = [part for part in model.module.modules() if part.training]
        model.module.eval()
        found = [mean_loss(model, model.encode(sample)) for sample in context.samples]
        for part in training:
            part.training = True
        return found

    def found(self, losses: list[float], rows: list[dict[str, Any]]) -> Evaluation:
        return Evaluation({"loss": sum(losses) / len(losses)}, rows)

    def plot(self, evaluation: Evaluation, directory: Path) -> list[Path]:
        path = directory / "losses.svg"
        path.write_text("<svg></svg>")
        return [path]


class GivesTensors(Losses):
    def found(self, losses, rows):
        return Evaluation({"loss": torch.tensor(losses).mean()}, rows)


class RowsOfTensors(Losses):
    def found(self, losses, rows):
        return Evaluation({"loss": sum(losses)}, [{"loss": torch.tensor(loss)} for loss in losses])


class Drifts(Losses):
    count: ClassVar[Any] = itertools.count()

    def found(self, losses, rows):
        return Evaluation({"loss": sum(losses) + next(self.count)}, rows)


class MeanOfMeans(Losses):
    def found(self, losses, rows):
        batches = [losses[n : n + self.batch_size] for n in range(0, len(losses) - 2, self.batch_size)]
        return Evaluation({"loss": sum(sum(each) / len(each) for each in batches) / len(batches)}, rows)


class SortsRows(Losses):
    def found(self, losses, rows):
        return Evaluation({"loss": sum(losses)}, sorted(rows, key=lambda row: row["loss"]))


class LeavesEval(Losses):
    def losses(self, context):
        context.model.module.eval()
        return super().losses(context)


class RoundsWeights(Losses):
    def losses(self, context):
        with torch.no_grad():
            for parameter in context.model.module.parameters():
                parameter.copy_(parameter.bfloat16())
        return super().losses(context)


class Seeds(Losses):
    def losses(self, context):
        torch.manual_seed(0)
        return super().losses(context)


class PopsFields(Losses):
    def losses(self, context):
        for sample in context.samples:
            sample.record.pop("answer", None)
        return super().losses(context)


class Prints(Losses):
    def losses(self, context):
        print("measuring")
        return super().losses(context)


class TakesNothing(Losses):
    def evaluate(self, context):
        return self.found(losses := self.losses(context), [{"loss": each} for each in losses])


class PlotsHere(Losses):
    def plot(self, evaluation, directory):
        Path("losses.svg").write_text("<svg></svg>")
        return [Path("losses.svg")]


def test_a_good_evaluator_passes_everything(examine: Callable[..., Any]):
    reports = examine(EvaluatorSuite, evaluator=Losses())
    assert {name: report.message for name, report in reports.items() if report.outcome != "passed"} == {}


LEFT = "test_the_model_is_left_as_it_was"


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        (GivesTensors, "test_metrics_are_finite_numbers", "found {'loss': tensor("),
        (RowsOfTensors, "test_rows_can_be_written_as_json", "a tensor or a path"),
        (Drifts, "test_the_same_again", "the same metrics and rows again"),
        (MeanOfMeans, "test_batches_do_not_matter", "a mean of the batches' means"),
        (SortsRows, "test_the_order_of_samples_does_not_matter", "expected the row of a sample to stay"),
        (LeavesEval, LEFT, "going back to the mode it was in"),
        (RoundsWeights, LEFT, "expected the weights to be left alone"),
        (Seeds, "test_random_numbers_are_left_as_they_were", "they moved"),
        (PopsFields, "test_samples_are_left_alone", "found them changed"),
        (Prints, "test_nothing_is_printed", "found 'measuring"),
        (TakesNothing, "test_no_samples_are_refused", "found ZeroDivisionError"),
        (PlotsHere, "test_plots_stay_in_their_directory", "losses.svg"),
    ],
)
def test_a_broken_evaluator_fails_its_check(
    broken: type[Evaluator], check: str, said: str, examine: Callable[..., Any]
):
    report = examine(EvaluatorSuite, evaluator=broken(), only=check)[check]
    assert report.outcome == "failed"
    assert said in report.message
