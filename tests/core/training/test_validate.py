"""The held-out loss: a plain loop over every logit gives the same, and no pass is larger than the bound."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmflow.data.collate import Batch
from lmflow.data.sample import Item, TokenSequence
from lmflow.distributed.processes import Processes
from lmflow.errors import Interrupted, TrainingError
from lmflow.run.log import RunLog
from lmflow.testing.contexts import quiet_log
from lmflow.training import batches
from lmflow.training.loss import negative_log_likelihood, sums_by_sequence, target_logprobs
from lmflow.training.objective import FunctionObjective, Loss, NextToken, Objective
from lmflow.training.validate import validate


def found(model: Any, items: list[Item], objective: Objective | None = None, **changes: Any) -> dict[str, float]:
    given: dict[str, Any] = {
        "log": quiet_log(),
        "pad_id": model.pad_id,
        "device": model.device,
        "size": None,
        "autocast": nullcontext(),
        **changes,
    }
    return validate(model.module, items, objective or NextToken(), **given)


@torch.no_grad()
def plain_loop(module: nn.Module, sequences: list[TokenSequence]) -> float:
    """The mean over targets of -log softmax(logits), one sequence at a time, in float64."""
    total, count = 0.0, 0
    for each in sequences:
        logprobs = module(torch.tensor([each.ids])).logits[0].double().log_softmax(-1)
        for position in range(1, len(each)):
            if each.loss_mask[position]:
                total -= float(logprobs[position - 1, each.ids[position]])
                count += 1
    return total / count


def margins(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
    """How much likelier the first of two sequences is: -log sigmoid of it, and how often it is above zero."""
    sums = sums_by_sequence(*target_logprobs(forward, module, batch), batch)
    margin = sums[::2] - sums[1::2]
    return Loss(
        -nn.functional.logsigmoid(margin).sum(), {"accuracy": (margin > 0).float().sum(), "margin": margin.sum()}
    )


def pairs_of(sequences: list[TokenSequence]) -> list[Item]:
    return list(zip(sequences[::2], sequences[1::2], strict=True))


@pytest.mark.parametrize("size", [None, 1, 5])
def test_it_equals_a_plain_loop_over_all_logits(size: int | None, tiny_model: Any, few_sequences: list[TokenSequence]):
    expected = plain_loop(tiny_model.module, few_sequences)
    assert found(tiny_model, list(few_sequences), size=size) == {"loss": pytest.approx(expected, rel=1e-6)}


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(tiny_model: Any, few_sequences: list[TokenSequence]):
    tiny_model.module.lm_head.weight.data.zero_()
    size = tiny_model.module.config.vocab_size
    assert found(tiny_model, list(few_sequences))["loss"] == pytest.approx(math.log(size), rel=1e-6)


def test_dropout_is_off_and_no_gradient_is_kept(tiny_model: Any, few_sequences: list[TokenSequence]):
    tiny_model.module.train()
    asked: list[tuple[bool, bool]] = []

    def watch(forward: nn.Module, module: nn.Module, batch: Batch) -> Tensor:
        asked.append((module.training, torch.is_grad_enabled()))
        return negative_log_likelihood(forward, module, batch)

    found(tiny_model, list(few_sequences), FunctionObjective(watch))
    assert set(asked) == {(False, False)}
    assert torch.is_grad_enabled()


def test_no_pass_has_more_tokens_than_the_bound(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 96)
    draw = random.Random(1)
    lengths = [draw.randint(4, 30) for _ in range(40)]
    sequences = [TokenSequence([5] * n, [True] * n, f"s{n}") for n in lengths]
    seen: list[tuple[int, int]] = []

    def watch(forward: nn.Module, module: nn.Module, batch: Batch) -> Tensor:
        seen.append(tuple(batch.input_ids.shape))  # type: ignore[arg-type]
        return negative_log_likelihood(forward, module, batch)

    result = found(tiny_model, list(sequences), FunctionObjective(watch))
    assert max(rows * columns for rows, columns in seen) <= 96
    assert max(rows for rows, _ in seen) == 8, "short ones fill a batch of 8 rows"
    assert sum(rows for rows, _ in seen) == 40
    assert result["loss"] == pytest.approx(plain_loop(tiny_model.module, sequences), rel=1e-6)


def test_one_item_longer_than_the_bound_has_a_pass_of_its_own(tiny_model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 20)
    rows: list[int] = []

    def watch(forward: nn.Module, module: nn.Module, batch: Batch) -> Tensor:
        rows.append(batch.input_ids.shape[0])
        return negative_log_likelihood(forward, module, batch)

    found(tiny_model, [TokenSequence([5] * n, [True] * n) for n in (10, 10, 50)], FunctionObjective(watch))
    assert rows == [2, 1]


def test_both_sequences_of_a_pair_count_towards_the_bound(
    tiny_model: Any, few_sequences: list[TokenSequence], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 80)
    shapes: list[tuple[int, int]] = []

    def watch(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
        shapes.append(tuple(batch.input_ids.shape))  # type: ignore[arg-type]
        return margins(forward, module, batch)

    found(tiny_model, pairs_of(few_sequences), FunctionObjective(watch, "item"))
    assert all(rows % 2 == 0 for rows, _ in shapes)
    assert max(rows * columns for rows, columns in shapes) <= 80


def test_metrics_are_means_over_the_items(tiny_model: Any, few_sequences: list[TokenSequence]):
    """By hand: the log-probability of each sequence alone, and from these the three figures."""
    pairs = pairs_of(few_sequences)
    by_hand = []
    for chosen, rejected in zip(few_sequences[::2], few_sequences[1::2], strict=True):
        logprobs = [-plain_loop(tiny_model.module, [each]) * each.num_targets for each in (chosen, rejected)]
        by_hand.append(logprobs[0] - logprobs[1])
    result = found(tiny_model, pairs, FunctionObjective(margins, "item"), size=2)
    assert result == {
        "loss": pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in by_hand) / len(pairs), rel=1e-5),
        "accuracy": sum(margin > 0 for margin in by_hand) / len(pairs),
        "margin": pytest.approx(sum(by_hand) / len(pairs), rel=1e-5),
    }


class One(Processes):
    """One of two processes, which has been told what the other one adds up to."""

    def __init__(self, rank: int, theirs: dict[str, float], calls: list[float]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "theirs", theirs)
        object.__setattr__(self, "calls", calls)

    def gather(self, value: Any) -> list[Any]:
        """Names of both."""
        return [value, sorted(self.theirs)]  # type: ignore[attr-defined]

    def sum(self, value: float) -> float:
        """What this process found, kept, and the sum with the other's of the same name, which come sorted."""
        self.calls.append(value)  # type: ignore[attr-defined]
        theirs = [self.theirs[name] for name in sorted(self.theirs)]  # type: ignore[attr-defined]
        return value + theirs[len(self.calls) - 1]  # type: ignore[attr-defined]


def test_two_processes_share_the_items_and_find_what_one_does(tiny_model: Any, few_sequences: list[TokenSequence]):
    pairs = pairs_of(few_sequences)
    objective = FunctionObjective(margins, "item")
    names = ("accuracy", "loss", "margin")
    passes: list[list[str]] = [[], []]

    def of(rank: int, theirs: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        def watch(forward: nn.Module, module: nn.Module, batch: Batch) -> Loss:
            passes[rank] += [each.source for each in batch.sequences]
            return margins(forward, module, batch)

        calls: list[float] = []
        log = RunLog(None, lambda *_, **__: None, processes=One(rank, theirs, calls))
        result = found(tiny_model, pairs, FunctionObjective(watch, "item"), size=1, log=log)
        return result, dict(zip(names, calls, strict=True))

    _, second = of(1, dict.fromkeys(names, 0.0))
    passes[1].clear()
    first_result, first = of(0, second)
    second_result, _ = of(1, first)
    alone = found(tiny_model, pairs, objective, size=1)
    assert first_result == pytest.approx(alone, rel=1e-6)
    assert second_result == first_result
    assert sorted(passes[0] + passes[1]) == sorted(each.source for each in few_sequences), "each item once in all"
    assert not set(passes[0]) & set(passes[1])


def test_where_the_model_is_split_every_process_makes_every_pass(tiny_model: Any, few_sequences: list[TokenSequence]):
    class Second(Processes):
        def sum(self, value: float) -> float:
            raise AssertionError("each has the whole sum already")

    log = RunLog(None, lambda *_, **__: None, processes=Second(1, 2))
    assert found(tiny_model, list(few_sequences), log=log, together=True) == found(tiny_model, list(few_sequences))


def test_it_stops_where_it_is_asked_to(tiny_model: Any, few_sequences: list[TokenSequence]):
    log = quiet_log()
    log.stop_signal = 2
    with pytest.raises(Interrupted):
        found(tiny_model, list(few_sequences), log=log)


def test_the_objective_s_metrics_stand_in_metrics_jsonl(
    make_trainer: Callable[..., Any],
    few_sequences: list[TokenSequence],
    metrics_of: Callable[[str], list[dict[str, Any]]],
):
    pairs = pairs_of(few_sequences)
    trainer = make_trainer(evaluate_every=2, heldout=pairs[3:], objective=FunctionObjective(margins, "item"))
    trainer.plan(2)
    trainer.fit(pairs[:3], steps=2)
    lines = metrics_of("run")
    assert {"loss", "accuracy", "margin"} <= lines[0].keys()
    evaluated = lines[-1]
    assert evaluated.keys() == {"step", "eval_loss", "eval_accuracy", "eval_margin"}
    expected = trainer.validate(pairs[3:])
    assert {f"eval_{name}": value for name, value in expected.items()} == {
        name: pytest.approx(value) for name, value in evaluated.items() if name != "step"
    }


def test_another_objective_may_be_asked(make_trainer: Callable[..., Any], few_sequences: list[TokenSequence]):
    """What was forgotten is judged by the next-token loss, whatever the run minimises."""
    trainer = make_trainer(objective=FunctionObjective(margins, "item"))
    expected = plain_loop(trainer.model.module, few_sequences)
    assert trainer.evaluate(few_sequences, NextToken()) == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_is_not_finite_is_refused(tiny_model: Any):
    items: list[Item] = [TokenSequence([5, 6, 7], [False, True, True], "held:1")]
    broken = FunctionObjective(lambda *given: NextToken()(*given).total * math.nan)
    with pytest.raises(TrainingError, match=r"held-out samples is not finite \(nan\), such as of held:1"):
        found(tiny_model, items, broken)
