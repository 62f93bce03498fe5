"""Evaluator `passkey`: whether a model finds a number hidden at some depth of a long, dull text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lmflow.components import EvaluateContext, Evaluation, Evaluator

if TYPE_CHECKING:
    pass


class Passkey(Evaluator):
    """Find a number hidden at each depth of texts of each length (Mohtashami & Jaggi, 2023, arXiv 2305.16300)."""

    name = "passkey"
    reads_data: ClassVar[bool] = False

    lengths: list[int] | None = Field(
        None, description="Text lengths in tokens; a quarter, half and all of the model's context if unset."
    )
    depths: list[float] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], description="Where the number is hidden: 0 is the beginning, 1 the end."
    )
    trials: int = Field(5, gt=0, description="Texts for each length and depth, each with its own number.")
    digits: int = Field(5, gt=0, le=12, description="Digits of the number.")
    scoring: Literal["greedy", "choice"] = Field(
        "greedy",
        description="greedy: the answer the model writes begins with exactly the number; choice: it gives the number a "
        "lower loss than each of `alternatives` others, which models too small to answer can do.",
    )
    alternatives: int = Field(9, gt=0, description="Other numbers that choice compares with; chance is 1 in one more.")
    seed: int = Field(0, ge=0, description="Seed of the numbers.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Accuracy on a grid of depths and lengths; `samples` is not read.

        Metrics: `passkey_accuracy` over the grid, one for each length, and `passkey_chance`, what guessing gets. Each
        row has `length`, `depth`, `accuracy` and `trials`. Raises DataError for lengths that do not hold the prompt.
        """
        model, inferencer, log = context.model, context.inferencer, context.log
        from lmflow_longctx.lengths import announce, check_within, chosen_lengths
        from lmflow_longctx.passkey_prompts import answer_rows, choose_rows, make_tests

        lengths = chosen_lengths(model, self.lengths, option="lengths")
        if self.scoring == "greedy":
            check_within(model, lengths, option="lengths")
        announce(model, lengths, log)
        rows = []
        with log.phase("searching for the number", len(lengths) * len(self.depths) * self.trials):
            for length in lengths:
                tests = make_tests(model, length, self.depths, self.trials, self.digits, self.seed)
                if self.scoring == "greedy":
                    found = answer_rows(model, tests, inferencer, log)
                else:
                    found = choose_rows(model, tests, self.alternatives, self.seed, log)
                for depth in self.depths:
                    hits = [hit for test, hit in zip(tests, found) if test.depth == depth]
                    accuracy = sum(hits) / len(hits)
                    rows.append({"length": length, "depth": depth, "accuracy": accuracy, "trials": len(hits)})
        chance = 10.0**-self.digits if self.scoring == "greedy" else 1 / (self.alternatives + 1)
        metrics = {"passkey_accuracy": mean(row["accuracy"] for row in rows), "passkey_chance": chance}
        for length in lengths:
            metrics[f"passkey_accuracy_{length}"] = mean(row["accuracy"] for row in rows if row["length"] == length)
        return Evaluation(metrics, rows)

    def plot(self, evaluation: Evaluation, directory: Path) -> list[Path]:
        """The grid as SVG, and as PNG where matplotlib is installed."""
        from lmflow_longctx.plots import draw_heatmap

        return draw_heatmap(evaluation.rows, directory)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of at least one value."""
    listed = list(values)
    return sum(listed) / len(listed)
