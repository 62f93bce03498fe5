"""Evaluator `perplexity-by-length`: how well a model predicts the same tokens with more and more text before them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lmflow.components import EvaluateContext, Evaluation, Evaluator
from lmflow.errors import DataError

if TYPE_CHECKING:
    pass


class PerplexityByLength(Evaluator):
    """Perplexity of the same tokens at growing context lengths: a curve that falls if the context is used."""

    name = "perplexity-by-length"

    lengths: list[int] | None = Field(
        None, description="Window lengths in tokens; a quarter, half and all of the model's context if unset."
    )
    stretch: int = Field(32, gt=0, description="Tokens scored at the end of each window.")
    windows: int = Field(64, gt=0, description="Most stretches scored, spread evenly over the text.")
    batch_tokens: int = Field(8192, gt=0, description="Most tokens in one forward pass.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Score the last `stretch` tokens of windows that end at the same places for every length.

        Each row has `length`, `perplexity`, `loss` (nats per token), `tokens` (scored) and `windows`. A window lies
        within one sample. Raises DataError where no sample holds the longest window, and for lengths that leave no
        context before the stretch.
        """
        model, samples, log = context.model, context.samples, context.log
        from lmflow_longctx.lengths import announce, chosen_lengths
        from lmflow_longctx.scoring import ends_of_windows, stretch_loss

        lengths = chosen_lengths(model, self.lengths, option="lengths")
        if min(lengths) <= self.stretch:
            raise DataError(
                f"perplexity-by-length: a window of {min(lengths)} tokens has none before the {self.stretch} that are "
                "scored; choose longer lengths or a shorter stretch."
            )
        announce(model, lengths, log)
        texts = [sequence.ids for sample in samples for sequence in model.encode(sample, "all")]
        ends = ends_of_windows([len(ids) for ids in texts], max(lengths), self.stretch, self.windows)
        if not ends:
            longest = max((len(ids) for ids in texts), default=0)
            raise DataError(
                f"perplexity-by-length: no sample is as long as {max(lengths)} tokens, the longest has {longest}. Give "
                "longer texts (a .txt file is one sample), or shorter lengths."
            )
        rows: list[dict[str, Any]] = []
        with log.phase("measuring perplexity by length", len(lengths) * len(ends)):
            for length in lengths:
                windows = [texts[text][end - length : end] for text, end in ends]
                loss = stretch_loss(model, windows, self.stretch, max(1, self.batch_tokens // length), log)
                tokens = len(windows) * self.stretch
                perplexity = math.exp(loss) if loss < 700 else math.inf
                rows.append(
                    {
                        "length": length,
                        "perplexity": perplexity,
                        "loss": loss,
                        "tokens": tokens,
                        "windows": len(windows),
                    }
                )
        return Evaluation({f"perplexity_{row['length']}": row["perplexity"] for row in rows}, rows)

    def plot(self, evaluation: Evaluation, directory: Path) -> list[Path]:
        """The curve as SVG, and as PNG where matplotlib is installed."""
        from lmflow_longctx.plots import draw_curve

        return draw_curve(evaluation.rows, directory)
