"""The conformance suite for evaluators: what every measurement promises to those who compare models by it."""

from __future__ import annotations

import copy
import io
import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmflow.components import EvaluateContext, Evaluation, Evaluator, Inferencer
from lmflow.data.sample import Message, Sample
from lmflow.errors import LmflowError
from lmflow.testing.comparing import all_tensors, apart, different, some, state_of
from lmflow.testing.runs import RECORDS, supply

if TYPE_CHECKING:
    from lmflow.models.language_model import LanguageModel

FOUND: pytest.StashKey[dict[str, Evaluation]] = pytest.StashKey()


class EvaluatorSuite:
    """An examination of one evaluator; inherit from it in a class whose name begins with Test, and supply it.

        from lmflow.testing import EvaluatorSuite

        class TestMyEvaluator(EvaluatorSuite):
            @pytest.fixture
            def evaluator(self):
                return MyEvaluator(window=64)

    Each test is one requirement, and its docstring says which. What is measured is a tiny Llama of random weights on
    twelve questions with answers; the fixtures `model` and `samples` can be others.
    """

    batch_options: ClassVar[Sequence[Mapping[str, Any]]] = ({"batch_tokens": 64}, {"batch_size": 1})
    """Other values of options that must not change what is found; those whose fields the evaluator lacks are passed
    over. The inferencer is tried with other batches too."""
    order_matters: ClassVar[bool] = False
    """Whether the order of the samples has a meaning, as where they are joined to one text."""
    tolerance: ClassVar[float] = 1e-4
    """Largest difference, relative where a number is above 1, that rounding explains between batches."""

    @pytest.fixture
    def evaluator(self) -> Evaluator:
        """The evaluator under examination; every suite supplies its own."""
        supply(self, "evaluator")

    @pytest.fixture
    def model(self) -> LanguageModel:
        """What is measured, made anew for each test."""
        from lmflow.testing.tiny import tiny_model

        return tiny_model(sharpness=6.0)

    @pytest.fixture
    def samples(self) -> Sequence[Sample]:
        """What it is measured on, at least three; for `reads_data = False` they are not used."""
        return [
            Sample(
                (Message("user", r["prompt"]), Message("assistant", r["answer"])), True, dict(r), f"records.jsonl:{n}"
            )
            for n, r in enumerate(RECORDS, 1)
        ]

    @pytest.fixture
    def evaluation(
        self, request: pytest.FixtureRequest, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> Evaluation:
        """What is found; measured once for all tests of an instance."""
        found: dict[str, Evaluation] = request.node.getparent(pytest.Class).stash.setdefault(FOUND, {})
        if repr(evaluator) not in found:
            found[repr(evaluator)] = self.measure(evaluator, model, samples)
        return found[repr(evaluator)]

    # What is found

    def test_metrics_are_finite_numbers(self, evaluation: Evaluation) -> None:
        """There is at least one metric, and each is a plain finite number under a name in small letters."""
        assert evaluation.metrics, "expected at least one metric; found none"
        wrong = {name: value for name, value in evaluation.metrics.items() if not is_finite(value)}
        assert not wrong, (
            f"expected finite numbers as metrics; found {wrong}. Usual cause: a tensor where float(…) is meant, a "
            "truth value, or a mean over nothing."
        )

    def test_rows_can_be_written_as_json(self, evaluation: Evaluation) -> None:
        """Every row is a mapping that JSON holds as it is: `lmflow eval --output` writes them to rows.jsonl."""
        for row in evaluation.rows:
            try:
                again = json.loads(json.dumps(dict(row), allow_nan=True))
            except (TypeError, ValueError) as error:
                pytest.fail(
                    f"expected rows of text, numbers, lists and mappings; found {error} in {str(row)[:200]}. Usual "
                    "cause: a tensor or a path in a row.",
                    pytrace=False,
                )
            assert again.keys() == row.keys(), f"expected text as names in a row; found {list(row)}"

    def test_the_same_again(
        self, evaluation: Evaluation, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """Measuring again finds the same to the bit, whatever torch's random numbers are by then."""
        import torch

        torch.manual_seed(12345)
        again = self.measure(evaluator, model, samples)
        holds = _same(again.metrics, evaluation.metrics) and _same(list(again.rows), list(evaluation.rows))
        assert holds, (
            f"expected the same metrics and rows again; found {dict(again.metrics)} after {dict(evaluation.metrics)}. "
            "Usual cause: random numbers without a seed, dropout left on, or a sum that is kept on the component."
        )

    def test_batches_do_not_matter(
        self, evaluation: Evaluation, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """With other `batch_options`, and an inferencer of smaller batches, the metrics are the same up to rounding."""
        from lmflow.inference.hf import HuggingFace

        known = [options for options in self.batch_options if options.keys() <= type(evaluator).model_fields.keys()]
        for options in ({}, *known):
            other = evaluator.model_copy(update=dict(options))
            found = self.measure(other, model, samples, HuggingFace(batch_tokens=64)).metrics
            self._expect_close(found, evaluation.metrics, f"with {dict(options) or 'an inferencer of small batches'}")

    def test_the_order_of_samples_does_not_matter(
        self, evaluation: Evaluation, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """Samples in another order give the same metrics, and the same rows in that order."""
        if self.order_matters or not evaluator.reads_data:
            return
        turned = self.measure(evaluator, model, list(reversed(samples)))
        self._expect_close(turned.metrics, evaluation.metrics, "with the samples in reverse order")
        if len(evaluation.rows) == len(samples):
            for found, expected in zip(reversed(turned.rows), evaluation.rows):
                assert _close(found, expected, self.tolerance), (
                    f"expected the row of a sample to stay the same; found {found} instead of {expected}. Usual cause: "
                    "sorted by length and not put back in order."
                )

    # What is left alone

    def test_the_model_is_left_as_it_was(
        self, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """Weights, gradients, `requires_grad` and the mode of every part are afterwards as before."""
        for training in (False, True):
            model.module.train(training)
            weights, before = all_tensors(model), state_of(model)
            self.measure(evaluator, model, samples)
            changed = different(all_tensors(model), weights)
            assert not changed, f"expected the weights to be left alone; found {some(changed)} changed"
            moved = apart(state_of(model), before)
            assert not moved, (
                f"expected modes, requires_grad, gradients and hooks as they were; found {some(moved)} changed. Usual "
                "cause: module.eval() without going back to the mode it was in."
            )

    def test_random_numbers_are_left_as_they_were(
        self, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """Torch's and Python's random numbers go on as if nothing had been measured."""
        import torch

        torch.manual_seed(1)
        random.seed(1)
        before, python = torch.random.get_rng_state(), random.getstate()
        self.measure(evaluator, model, samples)
        holds = torch.equal(torch.random.get_rng_state(), before) and random.getstate() == python
        assert holds, (
            "expected random numbers to go on as if nothing had been measured; they moved. Usual cause: "
            "torch.manual_seed() or a draw from the global generator; use one of its own."
        )

    def test_samples_are_left_alone(
        self, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]
    ) -> None:
        """Samples and their records are afterwards as before."""
        given = copy.deepcopy(list(samples))
        self.measure(evaluator, model, samples)
        assert list(samples) == given, "expected samples as they were; found them changed. Copy a record before"

    def test_nothing_is_printed(self, evaluator: Evaluator, model: LanguageModel, samples: Sequence[Sample]) -> None:
        """Nothing goes to standard output: what there is to say goes to `context.log`."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self.measure(evaluator, model, samples)
        assert not printed.getvalue(), f"expected nothing on standard output; found {printed.getvalue()[:200]!r}"

    # What is refused, and what is written

    def test_no_samples_are_refused(self, evaluator: Evaluator, model: LanguageModel) -> None:
        """An evaluator that reads data raises an LmflowError where there is none; others do without."""
        error: Exception | None = None
        try:
            self.measure(evaluator, model, [])
        except Exception as raised:
            error = raised
        if evaluator.reads_data:
            holds = isinstance(error, LmflowError) and str(error)
            assert holds, (
                f"expected an LmflowError that says there is no record; found {type(error).__name__}: {error}. Usual "
                "cause: a division by the number of samples."
            )
        else:
            assert error is None, f"expected to measure without samples (reads_data is False); found {error!r}"

    def test_plots_stay_in_their_directory(
        self, evaluator: Evaluator, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`plot` writes below the directory it is given alone, and returns what it wrote."""
        from lmflow.report.evaluation import write_evaluation

        here, directory = tmp_path / "here", tmp_path / "plots"
        here.mkdir()
        directory.mkdir()
        monkeypatch.chdir(here)
        drawn = evaluator.plot(evaluation, directory)
        outside = [path for path in drawn if not path.resolve().is_relative_to(directory.resolve())]
        absent = [path for path in drawn if not path.is_file()]
        elsewhere = [path.name for path in (*here.iterdir(), *tmp_path.iterdir()) if path not in (here, directory)]
        wrong = outside or absent or elsewhere
        assert not wrong, (
            f"expected plots below {directory}; found outside {outside}, not written {absent}, and beside it "
            f"{elsewhere}. Usual cause: a name without the directory in front of it."
        )
        record = {"evaluator": {"name": evaluator.name}, "metrics": dict(evaluation.metrics), "records": 0}
        rest: dict[str, Any] = {"inferencer_figures": {}, "notes": [], "seconds": 0.0, "versions": {}}
        written = write_evaluation(tmp_path / "report", {**record, **rest}, evaluation, evaluator)
        assert all(path.is_file() for path in written), "expected what `lmflow eval --output` lists to be written"

    # How the suite goes about it

    def measure(
        self,
        evaluator: Evaluator,
        model: LanguageModel,
        samples: Sequence[Sample],
        inferencer: Inferencer | None = None,
    ) -> Evaluation:
        """What a fresh copy of the evaluator finds, as `lmflow eval` calls it."""
        from lmflow.testing.contexts import evaluate_context

        context: EvaluateContext = evaluate_context(model, samples if evaluator.reads_data else [], inferencer)
        found = evaluator.model_copy(deep=True).evaluate(context)
        assert isinstance(found, Evaluation), f"expected an Evaluation from evaluate(); found {type(found).__name__}"
        return found

    def _expect_close(self, found: Mapping[str, float], expected: Mapping[str, float], when: str) -> None:
        assert _close(found, expected, self.tolerance), (
            f"expected the same metrics {when}; found {dict(found)} instead of {dict(expected)}. Usual cause: a mean "
            "of the batches' means, or padding that is counted."
        )


def is_finite(value: object) -> bool:
    """Whether `value` is a plain finite number, not a tensor, an array or a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _same(found: Any, expected: Any) -> bool:
    return _close(found, expected, 0.0)


def _close(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two values of JSON are equal but for rounding; a nan equals a nan."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(_close(found[k], expected[k], tolerance) for k in found)
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(_close(a, b, tolerance) for a, b in zip(found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        both_nan = math.isnan(found) and math.isnan(expected)
        return both_nan or found == expected or abs(found - expected) <= tolerance * max(1.0, abs(expected))
    return bool(found == expected)
