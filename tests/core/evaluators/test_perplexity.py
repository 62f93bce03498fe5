"""Perplexity and negative log-likelihood: equal to brute force and to the model's own loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.evaluators.perplexity import Nll, Perplexity
from lmflow.inference.hf import HuggingFace
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context

TEXTS = ("the quick brown fox jumps over the lazy dog", "a model learns to answer and then to stop " * 5)


def text(content: str, source: str = "t.txt") -> Sample:
    return Sample((Message("assistant", content),), False, {}, source)


def dialogue(*contents: str) -> Sample:
    roles = ("user", "assistant") * len(contents)
    return Sample(tuple(map(Message, roles, contents)), True, {}, "d.jsonl:1")


def run(evaluator: Any, model: Any, samples: list[Sample], log: RunLog) -> Any:
    return evaluator.evaluate(evaluate_context(model, samples, HuggingFace(), log))


def own_loss(model: Any, ids: list[int]) -> float:
    """Transformers' own mean loss over a sequence."""
    tensor = torch.tensor([ids])
    with torch.no_grad():
        return float(model.module(tensor, labels=tensor).loss)


def test_perplexity_of_texts_that_fit_is_that_of_transformers(tiny_model: Any, log: RunLog) -> None:
    found = run(Perplexity(), tiny_model, [text(each) for each in TEXTS], log)
    ids = [tiny_model.tokenizer(each)["input_ids"] for each in TEXTS]
    counts = [len(each) - 1 for each in ids]
    losses = [own_loss(tiny_model, each) for each in ids]
    weighted = sum(loss * count for loss, count in zip(losses, counts)) / sum(counts)
    assert found.metrics["tokens"] == sum(counts)
    assert found.metrics["texts"] == 2
    assert found.metrics["loss"] == pytest.approx(weighted, rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(weighted), rel=1e-5)
    assert [row["loss"] for row in found.rows] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("stride", [None, 8, 5, 1])
def test_text_longer_than_the_context(tiny_model: Any, log: RunLog, stride: int | None) -> None:
    """Each token from exactly what its window holds before it, by one forward pass each."""
    tiny_model.module.config.max_position_embeddings = 16
    ids = tiny_model.tokenizer(TEXTS[1])["input_ids"]
    assert len(ids) > 48
    losses, begin = [], 0
    for token in range(1, len(ids)):
        while token > begin + 16:
            begin += stride or 16
        with torch.no_grad():
            logits = tiny_model.module(torch.tensor([ids[begin:token]])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[ids[token]]))
    found = run(Perplexity(stride=stride), tiny_model, [text(TEXTS[1])], log)
    assert found.metrics["tokens"] == len(ids) - 1
    assert found.metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_joined_texts_are_one(tiny_model: Any, log: RunLog) -> None:
    joined = run(Perplexity(joined=True), tiny_model, [text(each) for each in TEXTS], log)
    one = run(Perplexity(), tiny_model, [text("\n\n".join(TEXTS))], log)
    assert joined.metrics == one.metrics
    assert joined.rows[0]["source"] == "2 records joined"


def test_a_begin_token_is_read_and_not_counted(tiny_model: Any, log: RunLog) -> None:
    from tokenizers.processors import TemplateProcessing

    begin = tiny_model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    tiny_model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    ids = tiny_model.tokenizer(TEXTS[0])["input_ids"]
    assert ids[0] == begin
    found = run(Perplexity(), tiny_model, [text(TEXTS[0])], log)
    assert found.metrics["tokens"] == len(ids) - 1
    assert found.metrics["loss"] == pytest.approx(own_loss(tiny_model, ids), rel=1e-5)


def test_what_perplexity_refuses(tiny_model: Any, log: RunLog) -> None:
    cases = [
        (Perplexity(window=1000), [text("a b")], "a window of 1,000 tokens is longer than the model's context of 256"),
        (Perplexity(window=8, stride=9), [text("a b")], "a stride of 9 leaves tokens out"),
        (Perplexity(), [dialogue("q", "a")], "d.jsonl:1: perplexity measures plain text.*use --evaluator nll"),
        (Perplexity(), [], "no text has two tokens"),
    ]
    for evaluator, samples, message in cases:
        with pytest.raises(DataError, match=message):
            run(evaluator, tiny_model, samples, log)
    with pytest.raises(ValidationError):
        Perplexity(window=0)


def test_a_model_without_a_limit_says_which_windows_are_used(
    tiny_model: Any, log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_model), "context_length", None)
    run(Perplexity(), tiny_model, [text("the quick fox")], log)
    assert log.notes == ["the model names no limit of its context: windows of 2,048 tokens are used"]


def test_nll_of_answers_is_the_loss_of_training(tiny_model: Any, log: RunLog) -> None:
    samples = [dialogue("who", "the quick fox"), dialogue("what", "jumps", "and", "then stops to answer")]
    found = run(Nll(), tiny_model, samples, log)
    sums, counts = [], []
    for sample in samples:
        [sequence] = tiny_model.encode(sample)
        labels = [token if trained else -100 for token, trained in zip(sequence.ids, sequence.loss_mask)]
        with torch.no_grad():
            loss = tiny_model.module(torch.tensor([sequence.ids]), labels=torch.tensor([labels])).loss
        counts.append(sequence.num_targets)
        sums.append(float(loss) * sequence.num_targets)
    assert [row["nll"] for row in found.rows] == pytest.approx(sums, rel=1e-4)
    assert [row["tokens"] for row in found.rows] == counts
    assert found.metrics["nll"] == pytest.approx(sum(sums) / 2, rel=1e-4)
    assert found.metrics["loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-4)
    assert (found.metrics["tokens"], found.metrics["records"]) == (sum(counts), 2)


def test_nll_of_all_tokens_and_of_long_records(tiny_model: Any, log: RunLog) -> None:
    short = run(Nll(of="all"), tiny_model, [dialogue("who", "the fox")], log)
    [sequence] = tiny_model.encode(dialogue("who", "the fox"))
    assert short.metrics["tokens"] == len(sequence.ids) - 1
    tiny_model.module.config.max_position_embeddings = 16
    long = run(Nll(), tiny_model, [dialogue("who", TEXTS[1])], log)
    [sequence] = tiny_model.encode(dialogue("who", TEXTS[1]))
    assert long.metrics["tokens"] == sequence.num_targets > 16


def test_what_nll_refuses(tiny_model: Any, log: RunLog) -> None:
    with pytest.raises(DataError, match=r"d.jsonl:1: nll needs an answer in each record"):
        run(Nll(), tiny_model, [dialogue("q")], log)
    with pytest.raises(DataError, match="no record"):
        run(Nll(), tiny_model, [], log)
    assert run(Nll(of="all"), tiny_model, [dialogue("who jumps")], log).metrics["tokens"] > 2
