"""Evaluators `perplexity` and `nll`: how probable a model finds text, per token and per answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lmflow.components import EvaluateContext, Evaluation, Evaluator
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError

if TYPE_CHECKING:
    from lmflow.components import Log
    from lmflow.models.language_model import LanguageModel

WINDOW_WITHOUT_LIMIT = 2048
"""Tokens per window for a model whose configuration names no limit."""


class Perplexity(Evaluator):
    """Perplexity of plain text per token, in windows that follow each other or overlap."""

    name = "perplexity"

    window: int | None = Field(None, gt=0, description="Most tokens read at once; the model's context if unset.")
    stride: int | None = Field(
        None,
        gt=0,
        description="Tokens between the beginnings of windows; less than the window lets them overlap, so that tokens "
        "are predicted from at least window - stride + 1 others. The window if unset: no overlap.",
    )
    joined: bool = Field(False, description="Take all records as one text, a blank line between them.")
    batch_tokens: int = Field(4096, gt=0, description="Most tokens in one forward pass.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """exp of the mean loss over all tokens of all texts but each text's first, every token counted once.

        Metrics are `perplexity`, `loss` (nats per token), `tokens` (those counted) and `texts`; rows have those of a
        text. Raises DataError for records that are no plain text, and for a window beyond the model's context.
        """
        model, samples, log = context.model, context.samples, context.log
        from lmflow.evaluators.scoring import token_losses

        window = window_for(model, self.window, log)
        stride = window if self.stride is None else self.stride
        if stride > window:
            raise DataError(f"perplexity: a stride of {stride} leaves tokens out between windows of {window}; lower it")
        texts = [as_text(sample) for sample in samples]
        if self.joined and texts:
            text = "\n\n".join(each.messages[0].content for each in texts)
            texts = [Sample((Message("assistant", text),), False, {}, f"{len(texts)} records joined")]
        sequences = [plain_tokens(model, text) for text in texts]
        count = sum(max(len(each) - 1, 0) for each in sequences)
        if not count:
            raise DataError("perplexity: no text has two tokens, so there is nothing to predict; give more text")
        with log.phase("measuring perplexity", count):
            losses = token_losses(model, sequences, window, stride, self.batch_tokens, log)
        rows = [
            {"source": text.source, **_figures(float(loss.double().sum()), len(loss))}
            for text, loss in zip(texts, losses)
        ]
        total = sum(float(loss.double().sum()) for loss in losses)
        return Evaluation({**_figures(total, count), "texts": len(texts)}, rows)


class Nll(Evaluator):
    """Negative log-likelihood of the answers: mean per record, and per token."""

    name = "nll"

    of: Literal["answers", "all"] = Field(
        "answers", description="Tokens counted: those of the assistant (all of a plain text), or all."
    )
    batch_tokens: int = Field(4096, gt=0, description="Most tokens in one forward pass.")

    def evaluate(self, context: EvaluateContext) -> Evaluation:
        """Sum the losses of a record's answers, each token predicted from all before it.

        A record longer than the model's context is read in windows that overlap by half.
        The token that ends an answer counts, as in training. Metrics are `nll` (nats per record, the mean), `loss`
        (nats per token), `perplexity`, `tokens` and `records`. Raises DataError for a record without an answer.
        """
        model, samples, log = context.model, context.samples, context.log
        from lmflow.evaluators.scoring import token_losses

        if not samples:
            raise DataError("nll: there is no record to measure")
        sequences, owners = [], []
        for number, sample in enumerate(samples):
            if self.of == "answers" and not any(turn.role == "assistant" for turn in sample.messages):
                raise DataError(
                    f"{sample.source}: nll needs an answer in each record; --evaluator.of all measures prompts"
                )
            for sequence in model.encode(sample, "assistant" if self.of == "answers" else "all"):
                sequences.append(sequence)
                owners.append(number)
        window = model.context_length
        stride = 1 if window is None else max(1, window // 2)
        with log.phase("measuring nll", sum(max(len(each) - 1, 0) for each in sequences)):
            losses = token_losses(model, sequences, window, stride, self.batch_tokens, log)
        sums, counts = [0.0] * len(samples), [0] * len(samples)
        for owner, sequence, loss in zip(owners, sequences, losses):
            counted = [value for value, trained in zip(loss.tolist(), sequence.loss_mask[1:]) if trained]
            sums[owner] += sum(counted)
            counts[owner] += len(counted)
        if not sum(counts):
            raise DataError("nll: the records' answers hold no token")
        rows = [
            {"source": sample.source, "nll": total, "tokens": count}
            for sample, total, count in zip(samples, sums, counts)
        ]
        metrics = {"nll": sum(sums) / len(samples), **_figures(sum(sums), sum(counts)), "records": len(samples)}
        return Evaluation(metrics, rows)


def window_for(model: LanguageModel, wanted: int | None, log: Log) -> int:
    """The window asked for, or the model's context. Raises DataError for one longer than that."""
    limit = model.context_length
    if wanted is not None and limit is not None and wanted > limit:
        raise DataError(
            f"perplexity: a window of {wanted:,} tokens is longer than the model's context of {limit:,}; lower it, or "
            "stretch the context with --context"
        )
    if wanted is None and limit is None:
        log.note(f"the model names no limit of its context: windows of {WINDOW_WITHOUT_LIMIT:,} tokens are used")
    return wanted or limit or WINDOW_WITHOUT_LIMIT


def as_text(sample: Sample) -> Sample:
    """The sample, if it is plain text. Raises DataError otherwise."""
    if sample.templated or len(sample.messages) > 1:
        raise DataError(
            f"{sample.source}: perplexity measures plain text (a .txt file, or records with `text`), and this is a "
            "dialogue; use --evaluator nll for answers"
        )
    return sample


def plain_tokens(model: LanguageModel, text: Sample) -> Any:
    """The text's tokens, after the token the tokenizer begins a text with, and without an end token."""
    from lmflow.data.sample import TokenSequence

    ids = list(model.encode_prompt(text).ids)
    return TokenSequence(ids, [True] * len(ids), text.source)


def _figures(total: float, tokens: int) -> dict[str, float]:
    """Loss per token and its exponential; neither where there is no token."""
    if not tokens:
        return {"tokens": 0}
    loss = total / tokens
    return {"perplexity": math.exp(loss) if loss < 700 else math.inf, "loss": loss, "tokens": tokens}
